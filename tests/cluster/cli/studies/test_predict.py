"""``persona-atlas predict`` on a store of given conversations with a tiny embedder: prints, draws and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from persona_atlas.cluster.cli import main

from command_line import Answered, Refused
from made_turns import store_of_talks
from planted_vectors import plant, planted_run
from tiny_embedder import save_tiny_embedder


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A store of conversations, a run with an axis, and an embedder."""
    folder = tmp_path_factory.mktemp("predict")
    talks, axis = store_of_talks(str(folder / "talks")), planted_run(str(folder / "axis"), plant().reduction).url
    return talks, axis, str(save_tiny_embedder(folder / "embedder"))


def test_the_object_has_every_figure_with_what_it_was_measured_on(
    stores: tuple[str, str, str], answered: Answered, tmp_path: Path
):
    talks, axis, embedder = stores
    picture = tmp_path / "prediction.png"
    options = ["--permutations", "9", "--clusters", "2", "--folds", "3", "--png", picture]
    found = answered("predict", talks, "--axis", axis, "--embedder", embedder, *options)
    fits = {fit["on"]: fit for fit in found["projection"]["fits"]}
    assert list(fits) == ["in-sample", "in-sample, weakest penalty", "held-out conversations"]
    assert [fit["flatters"] for fit in fits.values()] == [True, True, False]
    assert fits["held-out conversations"]["held_out_groups"] == 6
    assert 0 < fits["held-out conversations"]["p_value"] <= 1
    # Six conversations of two to four replies.
    assert (found["projection"]["replies"], found["change"]["replies"]) == (18, 12)
    assert sum(cluster["messages"] for cluster in found["clusters"]) == 12
    assert all(text.startswith("question") for cluster in found["clusters"] for text in cluster["typical"])
    assert (found["embedder"], found["png"]) == (embedder, str(picture))
    assert picture.stat().st_size > 5000


def test_the_tables_say_what_flatters(
    stores: tuple[str, str, str], capsys: pytest.CaptureFixture[str], signals_as_before: None
):
    talks, axis, embedder = stores
    with pytest.raises(SystemExit) as ended:
        main(["predict", talks, "--axis", axis, "--embedder", embedder, "--permutations", "0", "--by", "topic"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "flatters" in printed
    assert "held-out" in printed
    assert "Clusters of messages" in printed


def test_wrong_input_is_refused(stores: tuple[str, str, str], refused: Refused, tmp_path: Path):
    talks, axis, embedder = stores
    assert refused("predict", talks, "--axis", axis, "--embedder", tmp_path)["code"] == "no_embedder"
    assert refused("predict", axis, "--axis", axis, "--embedder", embedder)["code"] == "no_conversations"
    assert refused("predict", talks, "--axis", axis)["code"] == "usage"
    assert refused("predict", talks, "--axis", axis, "--embedder", embedder, "--folds", "2")["code"] == "usage"
