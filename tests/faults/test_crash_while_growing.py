"""A driver that dies while it adds to a run leaves the run as it was, or grown; the same command then finishes.

It dies at each request that only growing makes, when the server has done what was asked and before the request arrives;
the other requests are those of any run, where ``test_crash_at_every_request`` dies.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.query.run import open_run

from executioner import Executioner
from fakes import small_plan
from fault_jobs import by_make_faults, straight, tiny_job
from fault_proxy import FaultProxy
from plain_driver import finish, start_driver, work_here
from whole_run import assert_right, verified

GROWING = ["units-*.parquet", "run.json", "additions/000001.json"]
"""What is written before the first added unit, in this order."""


def grown(spec: JobSpec) -> JobSpec:
    """The job with a role more."""
    personas = spec.personas
    roles = personas.roles.model_copy(update={"names": ["pirate", "poet"]})
    return spec.model_copy(update={"personas": personas.model_copy(update={"roles": roles})})


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize(
    "is_done", [pytest.param(True, id="done"), pytest.param(False, id="not done", marks=by_make_faults)]
)
@pytest.mark.parametrize("path", [GROWING[-1], *(pytest.param(path, marks=by_make_faults) for path in GROWING[:-1])])
def test_a_driver_that_dies_while_it_grows_a_run_costs_nothing(
    proxy: FaultProxy, tiny: JobSpec, path: str, is_done: bool
):
    work_here(straight(tiny, proxy))
    proxy.clear()
    executioner = Executioner(is_done=is_done)
    proxy.script(executioner, "PUT", f"?*/{path}")
    executioner.driver = driver = start_driver(grown(tiny), grow=True)
    driver.wait()
    assert driver.process.exitcode == -signal.SIGKILL

    # As it was, whichever of the records before the last is there; and grown with the last one.
    run = open_run(tiny.store.url, proxy.server_url)
    has_grown = (path, is_done) == (GROWING[-1], True)
    assert (len(run.record.additions), run.completeness.planned) == ((1, 3) if has_grown else (0, 2))
    assert_right(run, straight(tiny, proxy), set(small_plan(tiny).by_id))
    verified(run.location)

    end = finish(straight(grown(tiny), proxy), grow=True)
    assert end.worked == 1
    run = open_run(tiny.store.url, proxy.server_url)
    assert run.completeness.is_complete
    assert run.index["persona"].to_pylist().count("poet") == 2
    assert verified(run.location).is_complete


def test_of_drivers_that_grow_a_run_at_once_one_works_and_the_others_are_refused(tmp_path: Path):
    spec = tiny_job(str(tmp_path / "run"))
    work_here(spec)
    drivers = [start_driver(grown(spec), grow=True, seconds_per_unit=0.02) for _ in range(3)]
    ends = [end for end in (driver.wait() for driver in drivers) if end is not None]
    told = {(end.status, end.error.get("code")) for end in ends}
    # One that comes when all is done finds nothing to do, and one that was late with the lease is told of the growth.
    assert told <= {(0, None), (2, "run_has_driver"), (2, "run_has_grown")}
    assert sorted(end.worked for end in ends) == [0, 0, 1]
    run = open_run(spec.store.url)
    assert len(run.record.additions) == 1
    assert verified(run.location).is_complete
