"""Scores of the released pipeline: they reach the rollout that they judge, and none that they may not judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.derived.released_scores import Imported, import_released_scores
from persona_atlas.storage.derived.scores import with_scores
from persona_atlas.storage.locations.location import open_location

ROWS = [
    # kind, persona, polarity, prompt, question, unit, row
    ("default", "assistant_default", "pos", 0, 0, "d", 0),
    ("role", "pirate", "pos", 0, 0, "p", 4),
    ("role", "pirate", "pos", 0, 1, "p", 5),
    ("role", "pirate", "pos", 0, 1, "p", 6),
    ("role", "stoic", "pos", 0, 0, "s", 8),
    ("trait", "stoic", "pos", 0, 0, "tp", 12),
    ("trait", "stoic", "neg", 0, 0, "tn", 16),
]
COLUMNS = ["kind", "persona", "polarity", "prompt_index", "question_index", "unit_id", "row"]
INDEX = pa.table({name: [row[place] for row in ROWS] for place, name in enumerate(COLUMNS)})


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir()
    for name, scores in files.items():
        (folder / f"{name}.json").write_text(scores if isinstance(scores, str) else json.dumps(scores))
    return folder


def imported(tmp_path: Path, **files: Any) -> tuple[Imported, dict[int, float | None]]:
    location = open_location(tmp_path / "run")
    done = import_released_scores(location, INDEX, write(tmp_path / "scores", **files), "released")
    found = with_scores(location, INDEX, "released")
    return done, dict(zip(found["row"].to_pylist(), found["score"].to_pylist(), strict=True))


def test_a_score_reaches_its_rollout_and_is_given_to_none_of_several(tmp_path: Path):
    done, scores = imported(
        tmp_path, default={"default_p0_q0": 3}, pirate={"pos_p0_q0": 3, "pos_p0_q1": 1, "pos_p4_q9": 2}
    )
    assert scores == {0: 3, 4: 3, 5: None, 6: None, 8: None, 12: None, 16: None}
    assert done == Imported(scored=2, unscored=5, unused=1, ambiguous=1)


def test_a_trait_and_a_role_of_one_name_are_told_apart_by_their_labels(tmp_path: Path):
    _, scores = imported(tmp_path, stoic={"pos_p0_q0": 90, "neg_p0_q0": "REFUSAL"})
    assert (scores[8], scores[12], scores[16]) == (None, 90, None)


def test_scores_of_the_role_of_that_name_go_to_the_role(tmp_path: Path):
    _, scores = imported(tmp_path, stoic={"pos_p0_q0": 2})
    assert (scores[8], scores[12]) == (2, None)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no .json"),
        ({"pirate": "{"}, "is not JSON"),
        ({"pirate": "[" * 100_000}, "is not JSON"),
        ({"pirate": [1]}, "not an object"),
        ({"pirate": {"p0_q0": 1}}, "'p0_q0' is not the key"),
        ({"pirate": {"pos_p0_q0": "3"}}, "must be a number"),
        ({"pirate": {"pos_p0_q0": True}}, "must be a number"),
        ({"pirate": '{"pos_p0_q0": NaN}'}, "must be a number"),
        ({"pirat": {"pos_p0_q0": 3}}, "Did you mean 'pirate'"),
        ({"default": {"default_p0_q0": 1, "pos_p0_q0": 2}}, "a second time"),
    ],
)
def test_what_is_no_score_of_this_run_is_refused_and_nothing_is_written(
    tmp_path: Path, files: dict[str, Any], says: str
):
    with pytest.raises(InputError) as caught:
        imported(tmp_path, **files)
    assert says in caught.value.message
    assert caught.value.file
    assert caught.value.hint
    assert not (tmp_path / "run").exists()
