"""A run of any length takes no more memory than a short one."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest
from persona_atlas.jobs.sources.persona_source import PersonaRequests
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import UnitAttempt, WorkUnit
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.run_units import run_units

from requests_of import engine_settings
from tiny_families import N_LAYERS, save_tiny_family


def order_of(number: int) -> UnitAttempt:
    """Eight rollouts under a system prompt of the unit's own, of a length of its own."""
    unit = WorkUnit.of_questions(f"unit{number}", "role", f"role{number}", "pos", 0, tuple(range(8)), 1)
    prompt = f"You are number {number}. " * (1 + number % 5)
    questions = tuple(f"Why {number}?" for number in unit.question_indices)
    return UnitAttempt(unit, PersonaRequests(prompt, questions, 0), 1, number)


@pytest.mark.slow
def test_the_resident_set_after_fifty_units_is_that_after_five(tmp_path: Path):
    directory = save_tiny_family(tmp_path, "llama")
    engine = BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS), batch_tokens=3000))
    orders = (order_of(number) for number in range(50))
    resident: list[int] = []
    # What is there before counts for nothing, and going through the modules' objects takes a third of a second a time.
    gc.collect()
    gc.freeze()
    try:
        for block in run_units(engine, lambda: next(orders, None)):
            assert isinstance(block, UnitResult)
            del block
            gc.collect()
            resident.append(psutil.Process().memory_info().rss)
    finally:
        gc.unfreeze()
    assert len(resident) == 50
    assert resident[49] <= 1.05 * resident[4]
