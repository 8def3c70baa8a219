"""Score classes of rollouts, and vectors as unions of them, against numpy over the rollouts themselves."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.classes import ALL, FULLY, HALVES, SEVENTY, at_least, score_classes
from persona_atlas.analysis.moments import Moments
from persona_atlas.analysis.vectors import trait_kinds, union
from persona_atlas.jobs.errors import InputError

COLUMNS = ("kind", "polarity", "prompt_index", "question_index", "sample_index", "score")


def lines_of(rows: list[tuple[Any, ...]]) -> pa.Table:
    schema = pa.schema([*((n, pa.string()) for n in COLUMNS[:2]), *((n, pa.int32()) for n in COLUMNS[2:5])])
    table = pa.table([list(column) for column in list(zip(*rows, strict=True))[:5]], schema=schema)
    return table.append_column("score", pa.array([row[5] for row in rows], pa.float32()))


def role(*scores: float | None) -> pa.Table:
    return lines_of([("role", "pos", 0, question, 0, score) for question, score in enumerate(scores)])


def test_a_role_has_the_class_of_its_score_and_what_is_not_scored_is_unscored():
    assert score_classes(role(0, 1, 2, 3, None, float("nan"))) == ["0", "1", "2", "3", "unscored", "unscored"]
    # To the nearest, and a half to the even one.
    assert score_classes(role(2.4, 2.6, 0.5, 1.5, 2.5)) == ["2", "3", "0", "2", "2"]


def test_the_default_is_any_whatever_a_judge_says():
    lines = lines_of([("default", "pos", 0, 0, 0, None), ("default", "pos", 0, 1, 0, 2.0)])
    assert score_classes(lines) == ["any", "any"]


def trait(*pairs: tuple[float | None, float | None]) -> pa.Table:
    return lines_of(
        [
            ("trait", polarity, 0, question, 0, score)
            for question, pair in enumerate(pairs)
            for polarity, score in zip(("pos", "neg"), pair, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("pos", "neg", "expected"),
    [
        (90, 10, ("pair70", "pair")),
        (90, 39, ("pair70", "pair")),
        (90, 40, ("single70", "single")),  # not by more than 50
        (60, 5, ("pair", "pair")),
        (69.5, 69, ("single", "single")),
        (70, 70, ("single70", "single70")),
        (10, 95, ("single", "single70")),  # the wrong way round is no pair that shows the trait
        (None, 5, ("unscored", "single")),
        (90, None, ("single70", "unscored")),
        (None, None, ("unscored", "unscored")),
    ],
)
def test_a_pair_passes_where_the_trait_scores_more_than_fifty_above_its_opposite(
    pos: float | None, neg: float | None, expected: tuple[str, str]
):
    assert tuple(score_classes(trait((pos, neg)))) == expected


def test_pairs_are_of_one_prompt_question_and_sample():
    lines = lines_of(
        [
            ("trait", "pos", 0, 0, 0, 90.0),
            ("trait", "neg", 1, 0, 0, 0.0),
            ("trait", "neg", 0, 1, 0, 0.0),
            ("trait", "neg", 0, 0, 1, 0.0),
        ]
    )
    assert score_classes(lines) == ["single70", "single", "single", "single"]


def test_rollouts_whose_partner_is_not_certain_make_no_pair():
    nowhere = lines_of([("trait", polarity, 0, None, 0, score) for polarity, score in (("pos", 90.0), ("neg", 0.0))])
    assert score_classes(nowhere) == ["single70", "single"]
    twice = lines_of(
        [("trait", polarity, 0, 0, 0, score) for polarity, score in (("pos", 90.0), ("neg", 0.0), ("neg", 5))]
    )
    assert score_classes(twice) == ["single70", "single", "single"]


@pytest.mark.parametrize(("lines", "told"), [(role(3, 4), "0 to 3"), (role(-1), "-1"), (trait((101, 5)), "0 to 100")])
def test_a_score_out_of_range_is_refused(lines: pa.Table, told: str):
    with pytest.raises(InputError, match=told):
        score_classes(lines)


def test_least_scores():
    assert at_least(3) == FULLY
    assert at_least(1.5) == {"2", "3"}
    assert at_least(0) == {"0", "1", "2", "3"}


SCORES = st.one_of(st.none(), st.sampled_from([0.0, 10.0, 25.0, 60.0, 70.0, 80.0, 100.0]))


def grouped(lines: pa.Table, values_NLD: np.ndarray) -> dict[str, dict[tuple[str, str], Moments]]:
    members: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row, (name, line) in enumerate(zip(score_classes(lines), lines.to_pylist(), strict=True)):
        members[line["polarity"], name, HALVES[line["question_index"] % 2]].append(row)
    found: dict[str, dict[tuple[str, str], Moments]] = {"pos": {}, "neg": {}}
    for (polarity, name, half), rows in members.items():
        found[polarity][name, half] = Moments.of(values_NLD[rows])
    return found


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=12), seed=st.integers(0, 99), least=st.integers(1, 3)
)
def test_every_kind_of_trait_vector_is_the_mean_over_its_rollouts_in_any_order(
    pairs: list[tuple[float | None, float | None]], seed: int, least: int
):
    rng = np.random.default_rng(seed)
    order = rng.permutation(2 * len(pairs))
    values_NLD = rng.standard_normal((2 * len(pairs), 1, 3))
    default_LD = rng.standard_normal((1, 3))
    groups = grouped(trait(*pairs).take(order), values_NLD[order])
    found = trait_kinds(groups["pos"], groups["neg"], default_LD, least)
    pos_NLD, neg_NLD = values_NLD[0::2], values_NLD[1::2]
    passing = [n for n, (pos, neg) in enumerate(pairs) if pos is not None and neg is not None and pos - neg > 50]
    shown = [n for n, (pos, _) in enumerate(pairs) if pos is not None and pos >= 70]
    expected = {
        "pos_neg": (pos_NLD.mean(axis=0) - neg_NLD.mean(axis=0), len(pairs)),
        "pos_default": (pos_NLD.mean(axis=0) - default_LD, len(pairs)),
    }
    if len(passing) >= least:
        expected["pos_neg_50"] = (pos_NLD - neg_NLD)[passing].mean(axis=0), len(passing)
    if len(shown) >= least:
        expected["pos_70"] = pos_NLD[shown].mean(axis=0), len(shown)
    assert set(found) == set(expected)
    for kind, (vector_LD, count) in expected.items():
        assert found[kind][1] == count, kind
        np.testing.assert_allclose(found[kind][0], vector_LD, atol=1e-12, err_msg=kind)


def test_nothing_comes_of_nothing():
    assert union({}, ALL) is None
    assert union({("3", "even"): Moments.empty(1, 2)}, ALL) is None
    assert trait_kinds({}, {}, np.ones((1, 2)), 1) == {}
    alone = {("unscored", "even"): Moments.of(np.ones((3, 1, 2)))}
    assert set(trait_kinds(alone, {}, None, 1)) == set()
    assert set(trait_kinds(alone, {}, np.ones((1, 2)), 1)) == {"pos_default"}


def test_pairs_that_differ_in_number_are_not_pairs():
    one, two = ({("pair70", "even"): Moments.of(np.ones((count, 1, 2)))} for count in (1, 2))
    with pytest.raises(ValueError, match="differ in number"):
        trait_kinds(one, two, None, 1)


def test_a_union_takes_the_classes_and_the_half_that_are_asked_for():
    values = {("3", "even"): 1.0, ("3", "odd"): 2.0, ("2", "even"): 4.0, ("pair70", "odd"): 8.0}
    groups = {key: Moments.of(np.full((1, 1, 1), value)) for key, value in values.items()}

    def total(classes: frozenset[str], half: str | None = None) -> float:
        found = union(groups, classes, half)
        return 0.0 if found is None else found.count * found.mean_LD.item()

    assert total(ALL) == pytest.approx(15)
    assert total(FULLY) == pytest.approx(3)
    assert total(FULLY, "odd") == pytest.approx(2)
    assert total(at_least(2), "even") == pytest.approx(5)
    assert total(SEVENTY) == pytest.approx(8)
    assert total(SEVENTY, "even") == 0
