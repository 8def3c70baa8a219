"""Fixtures that run the command line and restore the signal handlers afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from command_line import Answered, Refused, answered_by, refused_by


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], signals_as_before: None) -> Refused:
    """Run a command that must fail."""
    return refused_by(capsys)


@pytest.fixture
def answered(capsys: pytest.CaptureFixture[str], signals_as_before: None) -> Answered:
    """Run a command that must print an object."""
    return answered_by(capsys)
