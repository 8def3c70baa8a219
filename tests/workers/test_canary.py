"""The canary: which rollouts a worker compares, and the arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.scheduling.ledger import Failure
from persona_atlas.jobs.specs.spec_parts import CanarySpec
from persona_atlas.jobs.work.canary_rows import canary_draw
from persona_atlas.jobs.work.rollouts import Canary
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import UnitAttempt
from persona_atlas.workers.canary import LIMITS, CanaryChecks, compare, require_close
from persona_atlas.workers.mixed_up import others_of, taken_for
from persona_atlas.workers.run_units import run_units

from fakes import FakeEngine, small_plan, small_spec

MEAN, LAST = ("resid_post", "response_mean"), ("resid_post", "response_last")


@given(size=st.floats(1e-6, 0.5), seed=st.integers(0, 2**32))
def test_the_error_is_the_share_of_the_norm_and_the_worst_array_counts(size: float, seed: int):
    rng = np.random.default_rng(seed)
    plain_LD = rng.standard_normal((3, 8)) + 3
    off_LD = plain_LD + size * plain_LD[:, ::-1] * [[0], [1], [0]]
    canary = compare(
        {MEAN: plain_LD.astype(np.float32), LAST: off_LD.astype(np.float32)}, {MEAN: plain_LD, LAST: plain_LD}
    )
    assert canary.relative_error_L[0] < 1e-6
    assert canary.relative_error_L[1] == pytest.approx(size, rel=1e-2, abs=1e-6)
    assert canary.cosine_L[2] == pytest.approx(1)
    assert canary.cosine_L[1] < canary.cosine_L[0] + 1e-9


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_beyond_every_limit(value: float):
    plain_LD = np.ones((2, 4))
    got_LD = plain_LD.astype(np.float32)
    got_LD[1, 2] = value
    canary = compare({MEAN: got_LD}, {MEAN: plain_LD})
    assert canary.relative_error_L == (0.0, np.inf)
    with pytest.raises(UnitError, match="layer 9"):
        require_close(canary, [4, 9], 1e9, "it")


def test_a_zero_stream_that_was_captured_as_zero_is_right():
    canary = compare({MEAN: np.zeros((1, 4), np.float32)}, {MEAN: np.zeros((1, 4))})
    assert (canary.relative_error_L, canary.cosine_L) == ((0.0,), (1.0,))


def test_the_worst_layer_is_named_with_both_figures():
    canary = Canary(1, (1e-5, 2e-3, 3e-3), (1.0, 1.0, 1.0))
    require_close(canary, [0, 5, 10], LIMITS["bfloat16"], "it")
    with pytest.raises(UnitError, match=r"it, layer 10: .* by 3\.0e-03 of its norm; 1e-03 is allowed") as caught:
        require_close(canary, [0, 5, 10], LIMITS["float32"], "it")
    assert caught.value.code == "canary"


ROLES = {"names": ["p*"], "prompts": 3, "questions": 7, "samples": 2}
PLAN = small_plan(small_spec(personas={"roles": ROLES, "default": {"prompts": 0}}))


def attempts(*, is_suspect: bool = False) -> list[UnitAttempt]:
    return [
        UnitAttempt(unit, PLAN.requests(unit), 1 + is_suspect, row_block, is_suspect)
        for row_block, unit in enumerate(PLAN.units)
    ]


def worked(
    engine: FakeEngine, rule: CanarySpec | None = None, checks: CanaryChecks | None = None, *, is_suspect: bool = False
) -> list[UnitResult | Failure]:
    """Run all units, one call each, as a worker does that gets them one after the other."""
    checks = checks or CanaryChecks(rule)
    results: list[UnitResult | Failure] = []
    for attempt in attempts(is_suspect=is_suspect):
        results += run_units(engine, iter([attempt, None, None]).__next__, checks)
    return results


def test_the_first_unit_of_a_worker_is_checked_at_its_shortest_response_and_another_one():
    engine = FakeEngine()
    results = worked(engine, CanarySpec(one_in=10**9))
    first, *others = results
    assert isinstance(first, UnitResult)
    assert first.canary is not None
    assert first.canary.num_rollouts == len(first.canary.rows) == 2
    shortest = min(rollout.num_content_tokens for rollout in first.rollouts)
    assert shortest in [first.rollouts[row].num_content_tokens for row in first.canary.rows]
    assert engine.compared == [first.rollouts[row].address for row in first.canary.rows]
    assert all(isinstance(other, UnitResult) and other.canary is None for other in others)
    assert len(others) > 5


def test_over_a_run_the_sample_takes_every_row_of_a_unit_as_often_and_ignores_how_rollouts_are_batched():
    rule = CanarySpec(one_in=4)
    results = [result for result in worked(FakeEngine(), rule) if isinstance(result, UnitResult)]
    rows = [row for result in results for row in (result.canary.rows if result.canary else ())]
    num_rollouts = sum(len(result.rollouts) for result in results)
    assert num_rollouts / 6 < len(rows) < num_rollouts / 2.5
    assert set(rows) == set(range(14))
    together = FakeEngine()
    list(run_units(together, iter([*attempts(), None, None]).__next__, CanaryChecks(rule)))
    alone = FakeEngine()
    worked(alone, rule)
    assert together.compared == alone.compared


def test_another_seed_of_the_job_chooses_other_rollouts():
    units = list(PLAN.units)
    chosen = {
        seed: [str(a) for unit in units for a in unit.addresses() if canary_draw(a, a.seed(seed)) < 0.25]
        for seed in (0, 1)
    }
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize("wrong", ["all but the first", "the short", "the first"])
def test_an_error_at_any_place_of_a_unit_is_found(wrong: str):
    """What only neighbours, only short or only leading rollouts show must come to be compared in some unit."""
    every = [address for unit in PLAN.units for address in unit.addresses()]
    # The fake engine's responses all have the same length, so the short ones are marked by their address here.
    bad = {
        "all but the first": [a for a in every if (a.question_index, a.sample_index) != (0, 0)],
        "the short": [a for a in every if a.question_index == 5],
        "the first": [a for a in every if (a.question_index, a.sample_index) == (0, 0)],
    }[wrong]
    engine = FakeEngine(canary_errors=dict.fromkeys(bad, 0.3))
    failures = [result for result in worked(engine, CanarySpec(one_in=4)) if isinstance(result, Failure)]
    assert failures
    assert "differs from a plain forward pass by 3.0e-01" in failures[0].message


def test_every_rollout_and_every_unit_can_be_asked_for_and_no_check_at_all_is_recorded():
    all_rows = FakeEngine()
    worked(all_rows, CanarySpec(one_in=1))
    assert len(all_rows.compared) == PLAN.num_rollouts
    each = worked(FakeEngine(), CanarySpec(check="every_unit", one_in=10**9))
    assert all(isinstance(result, UnitResult) and result.canary is not None for result in each)
    off = FakeEngine(canary_error=1.0)
    for result in worked(off, CanarySpec(check="none")):
        assert isinstance(result, UnitResult)
        assert (result.canary, result.canary_rule) == (None, CanarySpec(check="none"))
    assert off.compared == []


def test_a_broken_worker_fails_unit_after_unit_until_it_is_right_again():
    engine, checks = FakeEngine(canary_error=1.0), CanaryChecks(CanarySpec(one_in=10**9))
    assert all(isinstance(result, Failure) for result in worked(engine, checks=checks))
    engine.canary_error = 0.0
    engine.compared.clear()
    assert all(isinstance(result, UnitResult) for result in worked(engine, checks=checks))
    assert len(engine.compared) == 2


def test_a_unit_that_has_failed_before_is_checked_by_a_worker_that_is_trusted():
    checks = CanaryChecks(CanarySpec(one_in=10**9))
    worked(FakeEngine(), checks=checks)
    engine = FakeEngine(canary_error=1.0)
    assert all(isinstance(result, Failure) for result in worked(engine, checks=checks, is_suspect=True))


def test_the_tolerance_of_the_job_replaces_that_of_the_parameter_type():
    engine = FakeEngine(canary_error=0.1)
    assert all(isinstance(result, UnitResult) for result in worked(engine, CanarySpec(tolerance=0.2)))
    assert isinstance(worked(engine, CanarySpec(tolerance=0.05))[0], Failure)


@pytest.mark.parametrize(("dtype", "is_kept"), [("bfloat16", True), ("float16", True), ("float32", False)])
def test_what_rounding_explains_is_kept_in_16_bits_counted_and_warned_of(
    dtype: str, is_kept: bool, caplog: pytest.LogCaptureFixture
):
    rule = CanarySpec(one_in=4).resolved(dtype)
    engine = FakeEngine(canary_error=0.1)
    results = worked(engine, rule)
    assert all(isinstance(result, UnitResult) == is_kept for result in results)
    if is_kept:
        canaries = [result.canary for result in results if isinstance(result, UnitResult) and result.canary]
        assert sum(canary.num_above for canary in canaries) == sum(one.num_rollouts for one in canaries) > 2
        assert "by 1.0e-01 of its norm, which is above 1e-03; it is kept" in caplog.text


def test_a_worker_whose_rollouts_are_kept_with_a_warning_is_not_trusted():
    engine, checks = FakeEngine(canary_error=0.1), CanaryChecks(CanarySpec(one_in=10**9, action="warn"))
    results = worked(engine, checks=checks)
    assert len(results) > 1
    assert all(isinstance(result, UnitResult) for result in results)
    # Two of each unit, the first and those that follow.
    assert len(engine.compared) == 2 * len(results)


def test_what_is_as_near_to_another_rollout_is_warned_of_within_the_limit(caplog: pytest.LogCaptureFixture):
    engine = FakeEngine(canary_error=5e-4, canary_taken_for="the vectors of another rollout")
    (first, *_) = worked(engine, CanarySpec(action="warn"))
    assert isinstance(first, UnitResult)
    assert first.canary is not None
    assert first.canary.num_above == first.canary.num_rollouts
    assert "as near to the vectors of another rollout" in caplog.text
    (first, *_) = worked(engine, CanarySpec(action="fail"))
    assert isinstance(first, UnitResult), "within the limit of a strict rule"


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (
            FakeEngine(canary_error=0.1, canary_taken_for="the vector of another layer"),
            "is the vector of another layer",
        ),
        (FakeEngine(canary_error=1.1), "by 1.1e+00 of its norm"),
    ],
    ids=["another layer", "longer than the vector"],
)
def test_what_no_rounding_explains_fails_a_unit_whatever_the_job_does_about_rounding(engine: FakeEngine, told: str):
    (first, *_) = worked(engine, CanarySpec(action="warn"))
    assert isinstance(first, Failure)
    assert told in first.message


@given(size=st.floats(1e-3, 1.5), seed=st.integers(0, 2**32))
def test_noise_of_any_size_is_not_taken_for_another_layer_or_rollout(size: float, seed: int):
    rng = np.random.default_rng(seed)
    first_LD, second_LD = rng.standard_normal((2, 3, 64))
    noise_LD = size * rng.standard_normal((3, 64))
    assert taken_for({MEAN: first_LD + noise_LD}, {MEAN: first_LD}, [{MEAN: second_LD}]) == ""


def test_vectors_of_another_layer_or_rollout_are_known_as_such():
    rng = np.random.default_rng(0)
    first_LD, second_LD = rng.standard_normal((2, 3, 64))
    rounding_LD = 0.02 * rng.standard_normal((3, 64))
    plain = {MEAN: first_LD}
    assert taken_for({MEAN: first_LD[[0, 2, 1]] + rounding_LD}, plain) == "the vector of another layer"
    other = "the vectors of another rollout"
    exchanged = [{MEAN: first_LD + rounding_LD}]
    copied = [{MEAN: second_LD + rounding_LD}]
    assert taken_for({MEAN: second_LD}, plain, exchanged) == taken_for({MEAN: second_LD}, plain, copied) == other
    # One whose neighbours have no vector, and one of which every token is kept.
    assert taken_for({MEAN: second_LD}, plain, [{MEAN: np.full((3, 64), np.nan)}]) == ""
    tokens = ("resid_post", "tokens")
    kept_KTD = np.repeat(second_LD[:, None], 4, axis=1)
    assert (
        taken_for({tokens: kept_KTD}, {tokens: np.repeat(first_LD[:, None], 4, axis=1)}, [{tokens: kept_KTD}]) == other
    )


def test_a_rollout_with_the_same_text_and_prompt_poolings_of_the_same_prompt_are_not_others():
    requests = iter([*PLAN.requests(PLAN.units[0]).first(PLAN.units[0])][:2])
    prompt = ("resid_post", "prompt_mean")
    rows = FakeEngine().generate(lambda: next(requests, None))
    first, second = (replace(row, vectors_LD=row.vectors_LD | {prompt: np.ones((4, 8), np.float32)}) for row in rows)
    ids = first.rollout.prompt_token_ids
    assert second.rollout.prompt_token_ids == ids
    assert others_of(first, [second]) == []
    second = replace(second, rollout=replace(second.rollout, response_token_ids=(8, 2)))
    (other,) = others_of(first, [first, second])
    assert prompt not in other
    assert MEAN in other
    elsewhere = replace(second, rollout=replace(second.rollout, prompt_token_ids=(*ids, 9)))
    assert prompt in others_of(first, [elsewhere])[0]


@pytest.mark.parametrize("layers", [[1], [0, 2], [0, 1, 2]], ids=["one layer", "two layers", "all layers"])
def test_layers_of_another_rollout_are_known_beside_layers_that_are_right(layers: list[int]):
    rng = np.random.default_rng(1)
    first_LD, second_LD = rng.standard_normal((2, 3, 64))
    mixed_LD = first_LD + 0.005 * rng.standard_normal((3, 64))
    mixed_LD[layers] = second_LD[layers]
    assert taken_for({MEAN: mixed_LD}, {MEAN: first_LD}, [{MEAN: second_LD}]) == "the vectors of another rollout"


@pytest.mark.parametrize("by", [-1, 1])
def test_kept_tokens_that_are_shifted_are_known_as_such(by: int):
    rng = np.random.default_rng(2)
    plain_KTD = rng.standard_normal((2, 9, 64))
    name = ("resid_post", "tokens")
    rounding_KTD = 0.02 * rng.standard_normal(plain_KTD.shape)
    assert taken_for({name: plain_KTD + rounding_KTD}, {name: plain_KTD}) == ""
    shifted = np.roll(plain_KTD, by, axis=1) + rounding_KTD
    assert taken_for({name: shifted}, {name: plain_KTD}) == "the vectors of the tokens beside them"
