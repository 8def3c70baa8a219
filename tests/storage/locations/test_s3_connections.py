"""Connections to S3 end with what needed them, and nobody hears of it."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import uuid

import pytest
from aiohttp import ClientSession
from persona_atlas.storage.locations.location import open_location
from zarr.abc.store import Store
from zarr.core.sync import sync

from fakes import small_plan
from stored_runs import store_run

pytestmark = pytest.mark.s3

READ_EVERYTHING = """
import sys
from persona_atlas import open_run
from persona_atlas.storage.verification.verify import verify_run
run = open_run(sys.argv[1])
run.activations(layer="all")
run.to_xarray().response_mean.sel(layer=1).values
verify_run(run.location)
open_run(sys.argv[1]).rollouts()
if sys.argv[2] == "held":
    held = run
"""


@pytest.mark.parametrize("how", ["dropped", "held"])
def test_a_process_that_read_from_s3_ends_in_silence(
    s3_endpoint: str, s3_bucket: str, how: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}"
    store_run(url, small_plan())
    done = subprocess.run([sys.executable, "-c", READ_EVERYTHING, url, how], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_location_that_is_dropped_leaves_no_session_open(s3_endpoint: str, s3_bucket: str):
    before = open_sessions()
    location = open_location(f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}", s3_endpoint)
    location.write("x", b"x")
    with location.errors():
        assert sync(_names(location.zarr(read_only=True))) == ["x"]
    assert len(open_sessions() - before) == 2
    del location
    for _ in range(200):
        if not open_sessions() - before:
            return
        time.sleep(0.05)
    pytest.fail("a session is still open")


async def _names(store: Store) -> list[str]:
    return [name async for name in store.list()]


def open_sessions() -> set[int]:
    """Sessions of this process with an HTTP server."""
    gc.collect()
    # By their type: isinstance would ask every lazy or deprecated object who it is.
    sessions = [thing for thing in gc.get_objects() if issubclass(type(thing), ClientSession)]
    return {id(session) for session in sessions if not session.closed}
