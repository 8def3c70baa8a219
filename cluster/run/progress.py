"""Progress of a job for people, on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from ...jobs.redaction import without_secrets
from ...jobs.scheduling.ledger import Failure, Ledger
from ...jobs.wording import count_of
from ...storage.format.records import Manifest
from ...storage.run.status import WaitStatus

_LINE_EVERY_S = 10.0


_ROLLOUTS_LINE_EVERY_S = 30.0
_WAIT_LINE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class _ShownWait:
    """A wait that was printed, and when, on the monotonic clock."""

    wait: WaitStatus
    at: float


class Progress:
    """Prints progress, and keeps the counts that the pace is computed from.

    Args:
        console: Console to print to, usually on stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: RichProgress | None = None
        self._task = None
        self._started = time.monotonic()
        self._last_line = 0.0
        self._first_done: int | None = None
        self._tokens = 0
        self._finished = 0
        self._waits: dict[str, _ShownWait] = {}

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(without_secrets(text), highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Show a bar while units are processed, if the console is a terminal; the pace counts from here."""
        self._started = time.monotonic()
        if not self._console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("units"),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
        )
        with RichProgress(*columns, console=self._console) as bar:
            self._bar = bar
            self._task = bar.add_task("Working", total=None, pace="")
            try:
                yield
            finally:
                self._bar = None

    @contextmanager
    def checking(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar for a check of every unit.

        Args:
            what: Label of the bar.

        Yields:
            A function to call with (units checked, units in all).
        """
        if not self._console.is_terminal:
            yield lambda _done, _total: None
            return
        with RichProgress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=self._console
        ) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def units(self, ledger: Ledger, manifest: Manifest | None) -> None:
        """Show the number of committed units: on a terminal at once, elsewhere every ten seconds and at the end.

        Args:
            ledger: State of the units.
            manifest: Manifest of the unit that was just committed; None at the start.
        """
        done, planned = ledger.num_done, len(ledger.plan.units)
        if manifest is None or self._first_done is None:
            self._first_done = done
        if manifest is not None:
            self._tokens += manifest.num_response_tokens
        pace = self._pace(done, planned)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=planned, pace=pace)
            return
        now = time.monotonic()
        if done == planned or now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            failed = f", {len(ledger.failed)} failed" if ledger.failed else ""
            self.say(f"{done} of {planned} units{failed}{', ' + pace if pace else ''}")

    def rollouts(self, ledger: Ledger, finished: int) -> None:
        """Show that units get on that take long: on a terminal at once, elsewhere where no unit ended for a while.

        Args:
            ledger: State of the units.
            finished: Rollouts that are finished, those of units that are not committed included.
        """
        if finished <= max(self._finished, ledger.rollouts_done):
            return
        planned = ledger.plan.num_rollouts
        if self._bar is not None and self._task is not None:
            self._finished = finished
            self._bar.update(self._task, pace=f"{finished:,} of {planned:,} rollouts")
        elif time.monotonic() - self._last_line >= _ROLLOUTS_LINE_EVERY_S:
            self._finished, self._last_line = finished, time.monotonic()
            units = f"{ledger.num_done} of {len(ledger.plan.units)} units"
            self.say(f"{units}; {finished:,} of {planned:,} rollouts are finished")

    def failed(self, failure: Failure, *, again: bool) -> None:
        """Print a failed attempt.

        Args:
            failure: The attempt, with its error.
            again: Whether the unit will be retried.
        """
        what = "is tried again" if again else "is given up"
        self.say(f"Unit {failure.unit_id} failed (attempt {failure.attempt}) and {what}: {failure.message}")

    def lost(self, worker: str, failures: Sequence[Failure]) -> None:
        """Print the loss of a worker, whose units are retried.

        Args:
            worker: Name of the worker.
            failures: A failure for each unit that it held; at least one.
        """
        units = count_of(len(failures), "unit")
        self.say(f"{worker} was lost with {units} in flight, to be tried again: {failures[0].message}")

    def show_waits(self, waits: Sequence[WaitStatus]) -> None:
        """Print what holds the job up: when it begins, every minute, and when it is over.

        Args:
            waits: What holds it up now.
        """
        now = time.monotonic()
        held_up = {wait.who: wait for wait in waits}
        for who, shown in list(self._waits.items()):
            if who not in held_up:
                del self._waits[who]
                self.say(f"{_upper(who)} goes on after {span(time.time() - shown.wait.since)}.")
        for who, wait in held_up.items():
            shown = self._waits.get(who)
            if shown is None or shown.wait.reason != wait.reason or now - shown.at >= _WAIT_LINE_EVERY_S:
                self._waits[who] = _ShownWait(wait, now)
                since = time.strftime("%H:%M:%S", time.localtime(wait.since))
                self.say(f"{_upper(who)} waits since {since}, and tries again: {wait.reason}")
        if waits and self._bar is not None and self._task is not None:
            self._bar.update(self._task, pace="waiting")

    def _pace(self, done: int, planned: int) -> str:
        seconds = time.monotonic() - self._started
        committed = done - (self._first_done or 0)
        # Units of one batch end at about the same time, so the first few do not show the pace.
        if committed < max(3, planned // 20) or seconds < 1:
            return ""
        left = seconds / committed * (planned - done)
        return f"{self._tokens / seconds:.0f} tokens/s, {span(left)} left"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def span(seconds: float) -> str:
    """Format a duration for people.

    Example:
        >>> span(12.4), span(180), span(5400)
        ('12 s', '3 min', '1.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
