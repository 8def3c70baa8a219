"""The canary on a real model whose passes are broken: conversations that see each other are found, in both modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from persona_atlas.jobs.scheduling.ledger import Failure
from persona_atlas.jobs.specs.spec_parts import CanarySpec
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import UnitAttempt
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.passes.packed import PackedPass
from persona_atlas.workers.canary import CanaryChecks
from persona_atlas.workers.chat.spans import load_renderer
from persona_atlas.workers.engine import Responder
from persona_atlas.workers.responders.given import GivenResponder
from persona_atlas.workers.run_units import run_units

from broken_passes import seeing_the_first
from conversations import conversation, given_plan
from fakes import small_plan
from requests_of import engine_settings


def fed(attempts: Sequence[UnitAttempt]) -> Callable[[], UnitAttempt | None]:
    to_do = iter(attempts)
    return lambda: next(to_do, None)


def generating(directory: Path) -> tuple[Responder, list[UnitAttempt]]:
    engine = BuiltinEngine(engine_settings(directory, layers=(0, 1, 2), max_new_tokens=6))
    plan = small_plan()
    return engine, [UnitAttempt(unit, plan.requests(unit), 1, block) for block, unit in enumerate(plan.units)]


def reading(directory: Path) -> tuple[Responder, list[UnitAttempt]]:
    engine = BuiltinEngine(engine_settings(directory, layers=(0, 1, 2)))
    # The longest text is the first of its pass, which computes what others share: the one that is right all the same.
    texts = ["An answer that is far longer than any of the others, and says as little.", "No.", "Yes.", "Zero."]
    talks = [conversation("Who are you?", text, index=i, system_prompt="Be.") for i, text in enumerate(texts)]
    plan = given_plan(*talks)
    attempts = [UnitAttempt(unit, plan.requests(unit), 1, block) for block, unit in enumerate(plan.units)]
    return GivenResponder(engine, load_renderer(directory)), attempts


@pytest.mark.parametrize("rule", [CanarySpec(), CanarySpec(check="every_unit"), CanarySpec(one_in=1)], ids=repr)
@pytest.mark.parametrize("mode", [generating, reading])
def test_texts_that_see_their_neighbours_are_found(
    mode: Callable[[Path], tuple[Responder, list[UnitAttempt]]],
    rule: CanarySpec,
    tiny_model_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    responder, attempts = mode(tiny_model_directory)
    sound = list(run_units(responder, fed(attempts), CanaryChecks(rule)))
    assert all(isinstance(result, UnitResult) for result in sound)
    monkeypatch.setattr(PackedPass, "attend", seeing_the_first(PackedPass.attend))
    results = list(run_units(responder, fed(attempts), CanaryChecks(rule)))
    failures = [result for result in results if isinstance(result, Failure)]
    # Nothing passed that a worker's first check has not seen, so no unit of this worker counts.
    assert len(failures) == len(attempts)
    assert all("differs from a plain forward pass" in failure.message for failure in failures)


def test_the_prompt_of_an_empty_response_is_compared_too(tiny_model_directory: Path):
    settings = engine_settings(tiny_model_directory, layers=(0, 1, 2), poolings=("response_mean", "prompt_last"))
    engine = BuiltinEngine(settings)
    plan = given_plan(conversation("Who are you?", "", index=0))
    (unit,) = plan.units
    (result,) = run_units(
        GivenResponder(engine, load_renderer(tiny_model_directory)), fed([UnitAttempt(unit, plan.requests(unit), 1, 0)])
    )
    assert isinstance(result, UnitResult)
    assert result.rollouts[0].num_content_tokens == 0
    assert result.canary is not None
    assert result.canary.worst_relative_error < 1e-5
