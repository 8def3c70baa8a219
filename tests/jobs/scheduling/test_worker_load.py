"""What a worker holds, and when it may be assigned more: a request that is older than its last assignment is void."""

from __future__ import annotations

from dataclasses import replace

from persona_atlas.jobs.scheduling.worker_load import WorkerLoad, WorkRequest
from persona_atlas.jobs.work.units import UnitAttempt

from fakes import small_plan


def attempts_at(*names: str) -> list[UnitAttempt]:
    """First attempts at units of three rollouts."""
    plan = small_plan()
    units = [plan.by_id[f"role.{name}.pos.p0.b0"] for name in names]
    return [UnitAttempt(unit, plan.requests(unit), 1, number) for number, unit in enumerate(units)]


def test_units_are_answered_one_by_one():
    load = WorkerLoad()
    pirate, poet, teacher = attempts_at("pirate", "poet", "teacher")
    load.take([pirate, poet])
    load.take([teacher])
    assert load.rollouts == 9
    assert load.answered(poet.unit.unit_id) == poet
    assert (load.rollouts, load.attempts, load.is_empty) == (6, [pirate, teacher], False)
    load.answered(teacher.unit.unit_id)
    load.answered(pirate.unit.unit_id)
    assert (load.rollouts, load.is_empty) == (0, True)
    assert load.answered(pirate.unit.unit_id) is None
    assert load.rollouts == 0


def test_a_request_from_before_the_last_assignment_does_not_count():
    load = WorkerLoad()
    pirate, poet, teacher = attempts_at("pirate", "poet", "teacher")
    load.take([pirate, poet])
    assert not load.takes_more
    load.note_request(WorkRequest(2))
    assert load.takes_more
    load.take([teacher])
    load.note_request(WorkRequest(2))
    assert not load.takes_more
    load.note_request(WorkRequest(3))
    assert load.takes_more
    load.note_request(WorkRequest(2))
    assert load.takes_more, "what comes late takes nothing back"


def test_what_it_rejected_is_as_if_it_had_never_been_assigned():
    load = WorkerLoad()
    pirate, poet, _ = attempts_at("pirate", "poet", "teacher")
    load.take([pirate])
    load.take([poet])
    load.note_request(WorkRequest(1))
    assert not load.takes_more
    load.rejected([poet])
    assert load.attempts == [pirate]
    assert load.takes_more


def test_nothing_is_assigned_beside_a_suspect():
    (pirate,) = attempts_at("pirate")
    load = WorkerLoad()
    load.take([replace(pirate, is_suspect=True)])
    load.note_request(WorkRequest(1))
    assert not load.takes_more
