"""Retries: which errors are retried, how often, after which waits, and how a stop ends them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from persona_atlas.cluster.retry import Backoff, with_retries
from persona_atlas.jobs.errors import AtlasError, StoreError, TransientError

QUICK = Backoff(tries=4, first_wait_s=0.001, longest_wait_s=0.002)


def failing(error: AtlasError, times: int) -> tuple[Callable[[], str], list[int]]:
    """Make an action that fails some times and then succeeds, and the list of its calls."""
    calls: list[int] = []

    def action() -> str:
        calls.append(len(calls) + 1)
        if len(calls) <= times:
            raise error
        return "done"

    return action, calls


def test_a_retryable_error_is_retried_until_the_action_succeeds():
    action, calls = failing(TransientError("it failed.", code="store_failed"), 3)
    lines: list[str] = []
    assert with_retries(action, lines.append, backoff=QUICK) == "done"
    assert len(calls) == 4
    assert lines == [f"it failed. Trying again in {wait} s." for wait in ("0.001", "0.002", "0.002")]


def test_the_last_error_is_raised_after_the_last_try():
    action, calls = failing(TransientError("it failed.", code="store_failed"), 9)
    lines: list[str] = []
    with pytest.raises(TransientError):
        with_retries(action, lines.append, backoff=QUICK)
    assert (len(calls), len(lines)) == (4, 3)


def test_an_error_that_is_not_retryable_is_raised_at_once():
    action, calls = failing(StoreError("it is damaged.", code="bad_object"), 1)
    with pytest.raises(StoreError):
        with_retries(action, backoff=QUICK)
    assert len(calls) == 1


def test_a_stop_ends_a_wait_and_allows_no_further_try():
    stop = threading.Event()
    action, calls = failing(TransientError("it failed.", code="store_failed"), 9)
    with pytest.raises(TransientError):
        with_retries(action, lambda _: stop.set(), stop, backoff=Backoff(9, first_wait_s=100, longest_wait_s=100))
    assert len(calls) == 1


def test_waits_double_up_to_the_longest():
    backoff = Backoff(tries=9, first_wait_s=0.25, longest_wait_s=15)
    assert [backoff.wait_s(failures) for failures in range(1, 9)] == [0.25, 0.5, 1, 2, 4, 8, 15, 15]
