"""The S3 server is gone for ten seconds in the middle of a run."""

from __future__ import annotations

import time

import pytest
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.commits import committed_units

from fault_jobs import straight
from fault_proxy import FaultProxy
from plain_driver import start_driver
from whole_run import assert_whole

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def test_a_run_lives_through_ten_seconds_without_the_server(proxy: FaultProxy, small: JobSpec):
    driver = start_driver(small, seconds_per_unit=0.3)
    bucket = open_location(small.store.url, proxy.server_url)
    for _ in range(600):
        if len(committed_units(bucket)) >= 2:
            break
        time.sleep(0.05)
    proxy.stop()
    before = committed_units(bucket)
    time.sleep(10)
    assert committed_units(bucket) == before
    assert 2 <= len(before) < 12
    proxy.start()
    end = driver.wait()
    assert end is not None
    assert (end.status, end.error, end.failures, end.worked) == (0, {}, {}, 12), end.output
    assert_whole(straight(small, proxy))
