"""What a sweep counts: Wilson intervals, repetition, and the points of planted replies."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.analysis.sweeping.intervals import Z_95, wilson_interval
from persona_atlas.analysis.sweeping.picture import degenerate_words
from persona_atlas.analysis.sweeping.points import Reply, points_of
from persona_atlas.analysis.sweeping.repetition import repetition_rate

LABELS = ("assistant", "human", "mystical")

trials = st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(trials, st.floats(0.1, 5))
def test_the_ends_of_an_interval_are_the_rates_z_standard_errors_away(counted: tuple[int, int], z: float):
    count, total = counted
    rate = count / total
    low, high = wilson_interval(count, total, z)
    assert 0 <= low <= rate <= high <= 1
    for end in (low, high):
        assert abs(rate - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total), abs=1e-6)
    other_low, other_high = wilson_interval(total - count, total, z)
    assert (other_low, other_high) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_published_values_and_no_trials():
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for count, total, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(0, 0) == (0, 1)
    assert pytest.approx(1.959964, abs=1e-6) == Z_95
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson_interval(5, 4)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5))
def test_repetition_is_the_share_of_ngrams_that_were_there_before(ids: list[int], n: int):
    seen: set[tuple[int, ...]] = set()
    repeated = total = 0
    for start in range(len(ids) - n + 1):
        ngram = tuple(ids[start : start + n])
        repeated += ngram in seen
        total += 1
        seen.add(ngram)
    rate = repetition_rate(ids, n)
    assert math.isnan(rate) if total == 0 else rate == pytest.approx(repeated / total)


@given(st.lists(st.integers(), min_size=4, max_size=20, unique=True), st.integers(2, 5))
def test_a_text_that_is_said_again_repeats_more(ids: list[int], times: int):
    assert repetition_rate(ids) == 0
    assert repetition_rate(ids * times) > repetition_rate(ids * (times - 1))


def planted() -> list[Reply]:
    def said(group: str, label: str | None, repetition: float, **more: object) -> Reply:
        return Reply(group, repetition, is_judged=True, label=label, **more)  # pyright: ignore[reportArgumentType]

    return [
        said("role pirate", "human", 0.0, projection=2.0),
        said("role pirate", "human", 0.9, projection=4.0, is_cut=True),
        said("role pirate", None, 0.6),
        Reply("role pirate", math.nan, is_empty=True),
        said("role ghost", "mystical", 0.7, is_cut=True),
        Reply("role ghost", 0.8),
    ]


def test_the_table_of_planted_labels():
    whole, pirate, ghost = points_of("steer -0.6", -0.6, planted(), LABELS)
    assert (whole.group, pirate.group, ghost.group) == ("all", "role pirate", "role ghost")
    # What has no label is counted, and is in no rate.
    assert (whole.replies, whole.labelled, whole.unlabelled, whole.waiting, whole.empty) == (6, 3, 1, 1, 1)
    assert [rate.count for rate in whole.rates] == [0, 2, 1]
    assert whole.rates[1].rate == pytest.approx(2 / 3)
    assert (whole.rates[1].low, whole.rates[1].high) == wilson_interval(2, 3)
    assert whole.rates[0].low == 0 < whole.rates[0].high
    assert whole.repetition == pytest.approx((0 + 0.9 + 0.6 + 0.7 + 0.8) / 5)
    assert whole.degenerate == pytest.approx(4 / 5)
    assert whole.cut == pytest.approx(2 / 6)
    assert whole.projection == pytest.approx(3.0), "replies without a vector are left out"
    assert [rate.count for rate in ghost.rates] == [0, 0, 1]
    assert math.isnan(ghost.projection)
    assert ghost.as_dict()["projection"] is None


def test_where_text_degenerates_is_said():
    worse = points_of("steer -0.6", -0.6, planted(), LABELS)
    fine = points_of("plain", 0.0, [Reply("", 0.1)], LABELS)
    assert degenerate_words(worse + fine) == (
        "Degenerate, at least 50% of 4-grams repeated on average: steer -0.6 (60%). Labels there say little."
    )
    assert degenerate_words(fine) == ""
    (empty,) = points_of("none yet", None, [], LABELS)
    assert empty.as_dict()["rates"]["human"] == {"count": 0, "rate": None, "low": 0.0, "high": 1.0}
    assert not empty.is_degenerate
