"""The output of a benchmark: tables for people, or one JSON object per line. Also times tasks in turns.

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
    """One measured figure.

    Attributes:
        name: Name of the figure; ends with ``(at most)`` if lower is better.
        value: The measured value.
        unit: Unit of the value; ``ratio`` if it has none.
        floor: Least value required, or the most if the name ends with ``(at most)``; None: nothing is required.
        holds: Whether the value meets ``floor``; True if nothing is required.
    """

    name: str
    value: float
    unit: str
    floor: float | None
    holds: bool


class Report:
    """Prints tables as they come, and figures as JSON lines or as a table at the end.

    Args:
        as_json: Print the figures as one JSON object per line on stdout; tables go to stderr.

    Attributes:
        lines: The figures so far.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=as_json, width=140)
        self.lines: list[Line] = []

    def say(self, text: str) -> None:
        """Print a line of progress."""
        self._console.print(f"[dim]{text}[/dim]", highlight=False)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; its first column is aligned to the left, the others to the right."""
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def least(self, name: str, value: float, unit: str, floor: float | None = None) -> None:
        """Add a figure for which higher is better.

        Args:
            name: Name of the figure.
            value: The measured value.
            unit: Unit of the value; ``ratio`` if it has none.
            floor: Least value required; None: nothing is required.
        """
        self._add(Line(name, value, unit, floor, floor is None or value >= floor))

    def most(self, name: str, value: float, unit: str, limit: float | None = None) -> None:
        """Add a figure for which lower is better; ``(at most)`` is appended to its name.

        Args:
            name: Name of the figure.
            value: The measured value.
            unit: Unit of the value; ``ratio`` if it has none.
            limit: Largest value allowed; None: nothing is required.
        """
        self._add(Line(f"{name} (at most)", value, unit, limit, limit is None or value <= limit))

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        if self._as_json:
            print(json.dumps(asdict(line)), flush=True)

    def finish(self) -> int:
        """Print all figures.

        Returns:
            The exit status: 1 if a figure does not meet its floor, else 0.
        """
        if not self._as_json:
            rows = [(line.name, f"{line.value:.3g}", line.unit, *_requirement(line)) for line in self.lines]
            self.table("Figures", ("figure", "value", "unit", "floor", "holds"), rows)
        return 0 if all(line.holds for line in self.lines) else 1


def _requirement(line: Line) -> tuple[str, str]:
    if line.floor is None:
        return "", ""
    return f"{line.floor:.3g}", "yes" if line.holds else "[bold red]no[/bold red]"


@dataclass(frozen=True, slots=True)
class Timed:
    """Durations of one task, round by round.

    Attributes:
        seconds: Wall-clock seconds.
        processor_s: Processor seconds of this process, all threads; unlike wall-clock time they do not count waiting
            for other processes of a shared machine.
    """

    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)

    def add(self, task: Callable[[], object]) -> None:
        """Run the task once and append its durations."""
        started, processor_started = time.perf_counter(), time.process_time()
        task()
        self.processor_s.append(time.process_time() - processor_started)
        self.seconds.append(time.perf_counter() - started)


def interleaved(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timed]:
    """Time tasks in turns, so that a slow phase of the machine affects all of them alike.

    Args:
        tasks: The tasks by name; each is first run once without being measured.
        repeats: Number of measured rounds.

    Returns:
        The durations, by name of the task.
    """
    for task in tasks.values():
        task()
    timed = {name: Timed() for name in tasks}
    for number in range(repeats):
        # Every other round runs backwards, so that no task always follows the same one and finds its caches.
        for name in list(tasks) if number % 2 == 0 else list(tasks)[::-1]:
            timed[name].add(tasks[name])
    return timed


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Compute the median over rounds of the ratio of two tasks.

    Example:
        >>> median_ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        2.0
    """
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
