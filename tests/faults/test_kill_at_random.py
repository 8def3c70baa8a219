"""kill -9 of drivers at random moments, over and over on one store: without Ray, so that there can be many."""

from __future__ import annotations

import pytest

from fault_jobs import KILLS, random_moments, small_job
from plain_driver import finish, start_driver
from whole_run import assert_whole


@pytest.mark.slow
def test_a_driver_killed_at_random_moments_again_and_again_costs_nothing(store_url: str):
    spec = small_job(store_url)
    is_over = False
    for moment in random_moments(2 * KILLS or 6, 1.0):
        driver = start_driver(spec, seconds_per_unit=0.05)
        driver.process.join(moment)
        is_over = not driver.process.is_alive()
        driver.kill()
        driver.wait()
        if is_over:
            break
    finish(spec)
    assert_whole(spec)
