"""Requests and answers that are lost, refused, late or cut in the middle: the run lives through each, in one start.

Every fault of a test hits the first request for each kind of object that a run writes.
"""

from __future__ import annotations

import pytest
from persona_atlas.jobs.specs.spec import JobSpec

from fakes import small_plan
from fault_jobs import by_make_faults, straight
from fault_proxy import Fault, FaultProxy, answer, answer_after_storing, cut, half_answer, lose_reply, slowly
from plain_driver import run_driver
from whole_run import assert_whole

pytestmark = pytest.mark.s3

FAULTS: dict[str, Fault] = {
    "the request is lost": cut,
    "the answer is lost": lose_reply,
    "half an answer": half_answer,
    "503": answer(503, "SlowDown"),
    "500": answer(500, "InternalError"),
    "done and 500": answer_after_storing(500, "InternalError"),
    "slow": slowly(0.7),
}
RARER = ("the request is lost", "500", "done and 500", "slow")
OBJECTS = [
    "drivers/*",
    "units-*.parquet",
    "run.json",
    "zarr.json",
    "activations/*/zarr.json",
    "rollouts/*",
    "activations/*/c/*",
    "commits/*",
    "chunks.parquet",
    "index.parquet",
]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=name, marks=[by_make_faults] if name in RARER else []) for name, fault in FAULTS.items()],
)
def test_a_fault_of_any_write_is_lived_through(proxy: FaultProxy, tiny: JobSpec, fault: Fault):
    for path in OBJECTS:
        proxy.script(fault, "PUT", f"?*/{path}")
    end = run_driver(tiny)
    assert (end.status, end.error, end.failures, end.worked) == (0, {}, {}, 2), end.output
    assert proxy.untouched == []
    assert_whole(straight(tiny, proxy))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(cut, id="cut", marks=by_make_faults),
        pytest.param(half_answer, id="half an answer"),
        pytest.param(answer(503, "SlowDown"), id="503", marks=by_make_faults),
    ],
)
def test_a_fault_of_any_read_is_lived_through(proxy: FaultProxy, tiny: JobSpec, fault: Fault):
    run_driver(tiny)
    proxy.clear()
    for path in ["", "?*/run.json", "?*/units-*.parquet", "?*/index.parquet", "?*/chunks.parquet"]:
        proxy.script(fault, "GET", path)
    for path in ["?*/zarr.json", "?*/rollouts/*", "?*/c/*", "?*/commits/*"]:
        proxy.script(fault, "[GH]E*", path, times=2)
    assert_whole(tiny)
    assert proxy.untouched == []


def test_no_commit_whose_answer_was_lost_is_made_twice_or_taken_for_another(proxy: FaultProxy, small: JobSpec):
    units = list(small_plan(small).by_id)
    for unit_id in units:
        proxy.script(lose_reply, "PUT", f"?*/commits/{unit_id}.json")
    end = run_driver(small)
    assert (end.status, end.worked, end.failures) == (0, len(units), {}), end.output
    assert_whole(straight(small, proxy))


@pytest.mark.parametrize("path", ["commits/*", "run.json"])
def test_a_conflict_of_two_conditional_writes_is_asked_about_again(proxy: FaultProxy, tiny: JobSpec, path: str):
    proxy.script(answer(409, "ConditionalRequestConflict"), "PUT", f"?*/{path}", times=2)
    end = run_driver(tiny)
    assert (end.status, end.error, end.failures, end.worked) == (0, {}, {}, 2), end.output
    assert_whole(straight(tiny, proxy))


def test_a_conflict_over_the_lease_takes_nothing_and_the_same_command_goes_on(proxy: FaultProxy, tiny: JobSpec):
    proxy.script(answer(409, "ConditionalRequestConflict"), "PUT", "?*/drivers/*")
    run_driver(tiny)
    assert run_driver(tiny).status == 0
    assert_whole(straight(tiny, proxy))


def test_a_block_that_can_never_be_written_is_reported_and_the_others_are_committed(proxy: FaultProxy, tiny: JobSpec):
    proxy.script(answer(400, "InvalidRequest"), "PUT", "?*/rollouts/role.pirate*", times=10**6)
    end = run_driver(tiny, tries=2)
    assert (end.status, end.worked, list(end.failures)) == (1, 1, ["role.pirate.pos.p0.b0"])
    proxy.clear()
    assert run_driver(tiny).status == 0
    assert_whole(straight(tiny, proxy))


def test_a_finished_run_is_finished_though_its_lease_cannot_be_given_back(proxy: FaultProxy, tiny: JobSpec):
    proxy.script(answer(400, "InvalidRequest"), "PUT", "?*/drivers/*", skip=2, times=10**6)
    end = run_driver(tiny)
    assert (end.status, end.error, end.worked) == (0, {}, 2)
    assert_whole(straight(tiny, proxy))
