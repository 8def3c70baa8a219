"""A driver that writes into a directory dies before every single call that changes it; the same command then finishes.

Dying before a step leaves what the steps before it have left, so the list has every state that a crash can leave. It is
written out, and a test holds it against a run in which nobody dies: a new step asks for its line here. ``make faults``
has it die before every one, the ordinary tests before one of each kind and some others.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from crash_points import Step, kind_of_object
from fault_jobs import by_make_faults, sample, tiny_job
from plain_driver import finish, run_driver, start_driver
from whole_run import assert_whole

_UNITS = ("default.assistant_default.pos.p0.b0", "role.pirate.pos.p0.b0")
_ARRAYS = ("activations/resid_post/prompt_last", "activations/resid_post/response_mean")


def _aside(path: str, ending: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}.{name}.part" if ending == ".part" else f"{folder}{slash}zarr.partial"


def _written(path: str, time: int = 1, ending: str = ".part") -> list[Step]:
    return [Step("open", _aside(path, ending), time), Step("rename", path)]


def _created(path: str, time: int = 1, ending: str = ".part") -> list[Step]:
    aside = _aside(path, ending)
    return [Step("open", aside, time), Step("link", path, time), Step("remove", aside, time)]


def _zarr_group(path: str, made_before: int, times: int) -> list[Step]:
    """Zarr makes sure of an array's parents each time that it makes an array."""
    aside = _aside(path, ".partial")
    return [
        step
        for time in range(1, times + 1)
        for step in (
            Step("open", aside, made_before + time),
            Step("link", path, time),
            Step("remove", aside, time),
        )
    ]


def _status(times: int) -> list[Step]:
    return [
        Step(call, path, time)
        for time in range(1, times + 1)
        for call, path in (("open", "status/.N.json.part"), ("rename", "status/N.json"))
    ]


BEGINNING = [
    *_created("drivers/N.json"),
    # Whether the store refuses it a second time.
    *_created("drivers/N.json", 2),
    # Starting, loading, working.
    *_status(times=3),
    *_written("units-N.parquet"),
    *_created("run.json"),
    *_written("zarr.json", ending=".partial"),
    *_zarr_group("zarr.json", made_before=1, times=2),
    *_zarr_group("activations/zarr.json", made_before=0, times=2),
    *_zarr_group("activations/resid_post/zarr.json", made_before=0, times=2),
    *(step for array in _ARRAYS for step in _written(f"{array}/zarr.json", ending=".partial")),
]
WORKING = [
    *(step for unit in _UNITS for step in _written(f"rollouts/{unit}-N.parquet")),
    *(
        Step(call, f"{array}/c/N/0/{name}", time)
        for array in _ARRAYS
        for time in (1, 2)
        for call, name in (("open", ".0.part"), ("rename", "0"))
    ),
    *(step for unit in _UNITS for step in _created(f"commits/{unit}.json")),
]
ENDING = [
    *_written("chunks.parquet"),
    *_written("index.parquet"),
    # The lease is given back.
    Step("open", "drivers/.N.json.part", 3),
    Step("rename", "drivers/N.json"),
]
STEPS = [*BEGINNING, *WORKING, *ENDING]


def kind(step: Step) -> tuple[str, str, int]:
    """Each lease of a driver is a kind of its own: it is taken, tested, and given back."""
    return step.call, kind_of_object(step.path), step.time if step.path.startswith("drivers/") else 1


def test_the_steps_of_this_file_are_all_there_are(tmp_path: Path):
    spec = tiny_job(str(tmp_path / "run"))
    made = run_driver(spec, note_steps=True).steps
    assert sorted(map(str, made)) == sorted(map(str, STEPS))
    assert_whole(spec)


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=by_make_faults)], ids=["once", "twice"])
@pytest.mark.parametrize("step", sample(STEPS, kind, others=8), ids=str)
def test_a_driver_that_dies_before_a_step_costs_nothing(tmp_path: Path, step: Step, times: int):
    spec = tiny_job(str(tmp_path / "run"))
    for time in range(times):
        driver = start_driver(spec, die_at=step)
        end = driver.wait()
        # The second start may have no reason to come to this step, and ends well.
        assert driver.process.exitcode == -signal.SIGKILL or (time and end is not None and end.status == 0)
    kept = _commits(tmp_path / "run")
    finish(spec)
    assert kept.items() <= _commits(tmp_path / "run").items()
    assert_whole(spec)


def _commits(store: Path) -> dict[str, bytes]:
    folder = store / "commits"
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}
