"""A driver that writes to S3 dies at every request that changes the bucket; the same command then finishes.

It dies when the server has done what was asked and before it learns of that, or before the request arrives. The list is
held against a run in which nobody dies: a new request asks for its line here. ``make faults`` has it die at every one,
the ordinary tests at one of each kind and at some others.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass

import pytest
from persona_atlas.jobs.specs.spec import JobSpec

from crash_points import anonymous, kind_of_object
from executioner import Executioner
from fault_jobs import by_make_faults, sample, straight
from fault_proxy import FaultProxy
from plain_driver import finish, run_driver, start_driver
from whole_run import assert_whole

pytestmark = [pytest.mark.s3, pytest.mark.slow]

WRITES = ("PUT", "POST", "DELETE")


@dataclass(frozen=True)
class Request:
    """The n-th PUT of an object; ``*`` stands for generations and row blocks."""

    path: str
    time: int = 1

    def __str__(self) -> str:
        return self.path + (f" ({self.time})" if self.time > 1 else "")


_UNITS = ("default.assistant_default.pos.p0.b0", "role.pirate.pos.p0.b0")
_ARRAYS = ("activations/resid_post/prompt_last", "activations/resid_post/response_mean")

REQUESTS = [
    Request("drivers/*.json"),
    # Whether the store refuses it a second time.
    Request("drivers/*.json", 2),
    # Starting, loading, working.
    *(Request("status/*.json", time) for time in (1, 2, 3)),
    Request("units-*.parquet"),
    Request("run.json"),
    *(Request(f"{group}zarr.json") for group in ("", "activations/", "activations/resid_post/")),
    *(Request(f"{array}/zarr.json") for array in _ARRAYS),
    *(Request(f"rollouts/{unit}-*.parquet") for unit in _UNITS),
    *(Request(f"{array}/c/*/0/0", time) for array in _ARRAYS for time in (1, 2)),
    *(Request(f"commits/{unit}.json") for unit in _UNITS),
    Request("chunks.parquet"),
    Request("index.parquet"),
    # The lease is given back.
    Request("drivers/*.json", 3),
]


def kind(request: Request) -> tuple[str, int]:
    """Each lease of a driver is a kind of its own: it is taken, tested, and given back."""
    return kind_of_object(request.path), request.time if request.path.startswith("drivers/") else 1


def test_the_requests_of_this_file_are_all_there_are(proxy: FaultProxy, tiny: JobSpec):
    run_driver(tiny)
    prefix = tiny.store.url.rpartition("/")[2] + "/"
    written = [anonymous(path.removeprefix(prefix)) for method, path in proxy.requests if method in WRITES]
    counts = Counter(path.replace("N", "*") for path in written)
    made = [Request(path, time) for path, count in counts.items() for time in range(1, count + 1)]
    assert sorted(map(str, made)) == sorted(map(str, REQUESTS))
    assert_whole(tiny)


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=by_make_faults)])
@pytest.mark.parametrize(
    "is_done",
    [
        pytest.param(True, id="done"),
        # As good as dying after the request before, but for those that are made at once.
        pytest.param(False, id="not done", marks=by_make_faults),
    ],
)
@pytest.mark.parametrize("request_", sample(REQUESTS, kind, others=4), ids=str)
def test_a_driver_that_dies_over_a_request_costs_nothing(
    proxy: FaultProxy, tiny: JobSpec, request_: Request, is_done: bool, times: int
):
    for time in range(times):
        proxy.clear()
        executioner = Executioner(is_done=is_done)
        proxy.script(executioner, "PUT", f"?*/{request_.path}", skip=request_.time - 1)
        executioner.driver = driver = start_driver(tiny)
        end = driver.wait()
        # The second start may have no reason to make this request, and ends well.
        assert driver.process.exitcode == -signal.SIGKILL or (time and end is not None and end.status == 0)
    finish(straight(tiny, proxy))
    assert_whole(straight(tiny, proxy))
