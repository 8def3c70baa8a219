"""How a benchmark says what it found: tables for people, or one JSON object a line. Never a timed test.

Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Line:
    """One figure.

    Attributes:
        name: What it is; says ``(at most)`` where lower is better.
        value: Measured.
        unit: Of the value; ``ratio`` has none.
        floor: What the value must reach, or stay under where the name says ``(at most)``; None without a demand.
        holds: Whether it does; true without a demand.
    """

    name: str
    value: float
    unit: str
    floor: float | None
    holds: bool


class Report:
    """Takes figures and tables as they come; prints tables at once, or the figures as JSON lines.

    Args:
        as_json: Print figures only, one JSON object a line.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=as_json, width=140)
        self.lines: list[Line] = []

    def say(self, text: str) -> None:
        """Tell a person what goes on."""
        self._console.print(f"[dim]{text}[/dim]", highlight=False)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table; with JSON it goes to stderr."""
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def least(self, name: str, value: float, unit: str, floor: float | None = None) -> None:
        """Note a figure that should be at least ``floor``."""
        self._add(Line(name, value, unit, floor, floor is None or value >= floor))

    def most(self, name: str, value: float, unit: str, limit: float | None = None) -> None:
        """Note a figure that should be at most ``limit``."""
        self._add(Line(f"{name} (at most)", value, unit, limit, limit is None or value <= limit))

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        if self._as_json:
            print(json.dumps(asdict(line)), flush=True)

    def finish(self) -> int:
        """Show all figures; give the exit status, 1 when a floor does not hold."""
        if not self._as_json:
            rows = [(line.name, f"{line.value:.3g}", line.unit, *_demand(line)) for line in self.lines]
            self.table("Figures", ("figure", "value", "unit", "floor", "holds"), rows)
        return 0 if all(line.holds for line in self.lines) else 1


def _demand(line: Line) -> tuple[str, str]:
    if line.floor is None:
        return "", ""
    return f"{line.floor:.3g}", "yes" if line.holds else "[bold red]no[/bold red]"


@dataclass(frozen=True, slots=True)
class Timed:
    """Rounds of one task.

    Attributes:
        seconds: By the clock.
        processor_s: Of this process's processor time, all threads; tells work from waiting on a machine that is shared.
    """

    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)

    def add(self, task: Callable[[], object]) -> None:
        """Run it once."""
        began, busy = time.perf_counter(), time.process_time()
        task()
        self.processor_s.append(time.process_time() - busy)
        self.seconds.append(time.perf_counter() - began)


def interleaved(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timed]:
    """Time tasks by turns, so that a slow moment of the machine falls on all of them.

    Args:
        tasks: By name; each is run once unmeasured first.
        repeats: Measured rounds.

    Returns:
        The rounds, by name.
    """
    for task in tasks.values():
        task()
    timed = {name: Timed() for name in tasks}
    for number in range(repeats):
        # Every other round backwards, so that nobody always follows the same neighbour.
        for name in list(tasks) if number % 2 == 0 else list(tasks)[::-1]:
            timed[name].add(tasks[name])
    return timed


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of two tasks, round by round.

    Example:
        >>> median_ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        2.0
    """
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
