"""Which rollouts and layers a filter selects: names that look like globs, and numbers beyond every run."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.query.selection import layer_positions, select, unknown_personas

NAMES = ["chat[1]", "chat1", "star*", "starling", "who?", "whom"]


@pytest.fixture
def index() -> pa.Table:
    return pa.table(
        {
            "kind": ["role"] * len(NAMES),
            "persona": NAMES,
            "prompt_index": pa.array(range(len(NAMES)), pa.int32()),
        }
    )


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("chat[1]", ["chat[1]"]),
        ("star*", ["star*"]),
        ("who?", ["who?"]),
        ("chat*", ["chat[1]", "chat1"]),
        ("sta*", ["star*", "starling"]),
        ("chat[12]", ["chat1"]),
        (["star*", "who*"], ["star*", "who?", "whom"]),
    ],
)
def test_an_exact_name_selects_itself_before_it_is_a_glob(index: pa.Table, asked: str | list[str], found: list[str]):
    assert select(index, {"persona": asked})["persona"].to_pylist() == found
    assert unknown_personas(index, asked) == ""


def test_a_pattern_that_is_neither_a_name_nor_matches_is_unknown(index: pa.Table):
    assert select(index, {"persona": "chat[2]"}).num_rows == 0
    assert unknown_personas(index, "chat[2]") == "There is no persona 'chat[2]'. Did you mean 'chat[1]'?"


@pytest.mark.parametrize("number", [10**20, -(10**20), 2**63, -1])
def test_an_index_that_no_column_can_hold_selects_nothing(index: pa.Table, number: int):
    assert select(index, {"prompt": number}).num_rows == 0
    assert select(index, {"prompt": [number, 2]})["persona"].to_pylist() == ["star*"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("0:1000000000000", "layer 4 "),
        ("1000000000000:1000000000009", "layer 1000000000000 "),
        ("-9999999999:2", "-99"),
    ],
)
def test_a_range_beyond_the_layers_is_refused_without_listing_it(asked: str, named: str):
    with pytest.raises(InputError, match=named) as caught:
        layer_positions(asked, captured=[0, 1, 2, 3], n_layers=4)
    assert caught.value.code == "no_such_layer"


def test_ranges_within_the_layers_are_as_they_were():
    assert layer_positions("1:", captured=[0, 1, 2, 3], n_layers=4) == [1, 2, 3]
    assert layer_positions(":4", captured=[0, 1, 2, 3], n_layers=4) == [0, 1, 2, 3]


@given(st.decimals(0, 100, places=2))
@example(Decimal("2.6"))
@example(Decimal("2.4"))
def test_both_ends_of_a_range_of_scores_are_included_as_they_are_typed(score: Decimal):
    # Scores are stored in float32, and bounds come as Python's floats.
    scored = pa.table({"kind": ["role"], "score": pa.array([float(score)], pa.float32())})
    assert select(scored, {"min_score": float(score), "max_score": float(score)}).num_rows == 1
    assert select(scored, {"min_score": float(score)}).num_rows == 1
    assert select(scored, {"max_score": float(score)}).num_rows == 1
    if score < 100:
        assert select(scored, {"min_score": float(score) + 0.005}).num_rows == 0


@pytest.mark.parametrize("field", ["min_score", "max_score"])
@pytest.mark.parametrize("bound", [-1, 101, 1e300, float("inf"), float("nan")])
def test_a_bound_that_is_no_score_is_refused_by_its_name(field: str, bound: float):
    scored = pa.table({"kind": ["role"], "score": pa.array([3.0], pa.float32())})
    with pytest.raises(InputError) as refused:
        select(scored, {field: bound})  # type: ignore[misc]
    assert refused.value.field == field
