"""``persona-atlas trajectories`` on a store of given conversations: what it prints, draws and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from persona_atlas.cluster.cli import main

from command_line import Answered, Refused
from made_turns import store_of_talks
from planted_vectors import plant, planted_run


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store of conversations, and a run with an axis."""
    folder = tmp_path_factory.mktemp("trajectories")
    return store_of_talks(str(folder / "talks")), planted_run(str(folder / "axis"), plant().reduction).url


def test_the_object_has_trajectories_drops_and_moves(stores: tuple[str, str], answered: Answered, tmp_path: Path):
    talks, axis = stores
    picture = tmp_path / "drift.png"
    found = answered(
        "trajectories", talks, "--axis", axis, "--layer", "1", "--last", "1", "--most", "2", "--png", picture
    )
    assert [(one["group"], one["conversations"]) for one in found["trajectories"]] == [("coding", 3), ("therapy", 3)]
    assert [reply["conversations"] for reply in found["trajectories"][0]["replies"]] == [3, 3, 2, 1]
    assert [drop["group"] for drop in found["drops"]] == ["coding", "therapy", "all"]
    assert found["drop_is"].startswith("the last reply less the first reply")
    assert found["scale"]["layer"] == 1
    assert len(found["moved_most"]["away"]) == 2
    assert found["moved_most"]["away"][0]["user"].startswith("question")
    assert found["png"] == str(picture)
    assert picture.stat().st_size > 5000


def test_the_tables_name_every_group(
    stores: tuple[str, str], capsys: pytest.CaptureFixture[str], signals_as_before: None
):
    with pytest.raises(SystemExit) as ended:
        main(["trajectories", stores[0], "--axis", stores[1], "--by", "topic"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("loops", "sleep", "work", "Drop:", "farthest away from"))


def test_wrong_input_is_refused(stores: tuple[str, str], refused: Refused):
    talks, axis = stores
    assert refused("trajectories", axis, "--axis", axis)["code"] == "no_conversations"
    assert refused("trajectories", talks, "--axis", axis, "--by", "mood")["field"] == "--by"
    assert refused("trajectories", talks, "--axis", axis, "--layer", "9")["code"] == "no_such_layer"
    assert refused("trajectories", talks, "--axis", talks)["code"] == "not_reduced"
    assert refused("trajectories", talks, "--axis", axis, "--png", "drift.text")["code"] == "bad_format"
