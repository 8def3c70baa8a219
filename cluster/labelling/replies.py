"""Replies that a judge is to label by a rubric, and which of them it has labelled. Of one run, or of several at once.

What they are for, a sweep or a study, is not known here: the caller says which runs, and which of their replies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.judging.outcomes import Outcome
from ...jobs.judging.queue import UnitToJudge
from ...jobs.judging.requests import Judged
from ...jobs.judging.rubrics import Rubric
from ...jobs.text_tokens import prompt_tokens
from ...storage.derived.verdicts import read_verdicts, write_verdicts
from ...storage.format.layout import verdict_folder
from ...storage.locations.location import Location
from ...storage.query.run import Run
from ...storage.run.commits import read_commit, read_rollouts

_TEXTS = ["row", "question", "response"]


@dataclass(frozen=True, eq=False)
class RunToLabel:
    """A run whose replies are labelled.

    Attributes:
        run: The run.
        folder: Folder of its verdicts below those of the rubric and the judge; empty where they are this run's alone.
        turn: The turn of the replies that are labelled; None: those of all turns.
    """

    run: Run
    folder: str = ""
    turn: int | None = None

    @cached_property
    def lines(self) -> pa.Table:
        """Lines of the index of the replies that are not empty: of those there is something to judge."""
        lines = self.run.index.filter(self.run.index["has_vector"])
        return lines if self.turn is None else lines.filter(pc.field("turn_index") == self.turn)


@dataclass(frozen=True, eq=False)
class LabelledRun:
    """The replies of a run, and which of them a judge has labelled.

    Attributes:
        asked: The run and which of its replies.
        folder: Folder of the judge's verdicts on it, below the location where they are kept.
        rows_done: Rows of the replies that have a verdict.
        first_row: What is added to a row of the run, so that rows of all runs differ.
    """

    asked: RunToLabel
    folder: str
    rows_done: frozenset[int]
    first_row: int

    @property
    def left(self) -> dict[str, list[int]]:
        """Rows without a verdict, by unit."""
        rows: dict[str, list[int]] = {}
        lines = self.asked.lines
        for unit_id, row in zip(lines["unit_id"].to_pylist(), lines["row"].to_pylist(), strict=True):
            if row not in self.rows_done:
                rows.setdefault(unit_id, []).append(row)
        return rows

    def unit_rows(self, unit_id: str) -> frozenset[int]:
        """Return the rows of all replies of a unit."""
        index = self.asked.run.index
        pairs = zip(index["unit_id"].to_pylist(), index["row"].to_pylist(), strict=True)
        return frozenset(row for unit, row in pairs if unit == unit_id)


@dataclass(frozen=True, eq=False)
class RepliesToLabel:
    """The replies that a judge labels.

    Attributes:
        location: Where verdicts are kept: the folder of a sweep, or the store of a run.
        rubric: The rubric.
        runs: The runs with their replies.
    """

    location: Location
    rubric: Rubric
    runs: tuple[LabelledRun, ...]

    @property
    def num_replies(self) -> int:
        """Number of replies that are not empty."""
        return sum(one.asked.lines.num_rows for one in self.runs)

    @property
    def num_done(self) -> int:
        """Number of them that have a verdict."""
        return sum(len(one.rows_done) for one in self.runs)

    def units(self) -> Iterator[UnitToJudge]:
        """Read the units with replies that are left, one after another; ``write`` knows their ids.

        Raises:
            StoreError: The texts of a unit are missing or damaged.
        """
        rubric_tokens = prompt_tokens(len(self.rubric.prompt.split()))
        form = self.rubric.form
        for number, one in enumerate(self.runs):
            # The prompt is an upper bound of the question in it.
            lengths = {
                line["row"]: line["num_prompt_tokens"] + line["num_content_tokens"]
                for line in one.asked.lines.select(["row", "num_prompt_tokens", "num_content_tokens"]).to_pylist()
            }
            location = one.asked.run.location
            for unit_id, rows in one.left.items():
                texts = read_rollouts(location, read_commit(location, unit_id), _TEXTS)
                text_of = {text["row"]: text for text in texts.to_pylist()}
                key = f"{number}:{unit_id}"
                judged = tuple(
                    Judged(
                        row + one.first_row,
                        key,
                        form,
                        self.rubric.asked(text_of[row]["question"], text_of[row]["response"]),
                        rubric_tokens + lengths[row],
                    )
                    for row in rows
                    if row in text_of
                )
                if judged:
                    yield UnitToJudge(key, judged)

    def write(self, key: str, outcomes: Sequence[Outcome]) -> None:
        """Keep the outcomes of a unit, whose id is that of ``units``."""
        number, _, unit_id = key.partition(":")
        one = self.runs[int(number)]
        of_run = [replace(outcome, row=outcome.row - one.first_row) for outcome in outcomes]
        write_verdicts(self.location, one.folder, unit_id, of_run, self.rubric.labels, one.unit_rows(unit_id))


def find_replies(location: Location, rubric: Rubric, judge: str, runs: Iterable[RunToLabel]) -> RepliesToLabel:
    """Find the replies of some runs and which of them a judge has labelled; no text is read.

    Args:
        location: Where verdicts are kept.
        rubric: The rubric.
        judge: Name of the judge.
        runs: The runs.

    Raises:
        StoreError: A file of verdicts is damaged.
    """
    found: list[LabelledRun] = []
    first_row = 0
    for one in runs:
        folder = verdict_folder(rubric.name, judge, one.folder)
        labelled = set(read_verdicts(location, folder, sorted(one.run.committed))["row"].to_pylist())
        rows_done = frozenset(labelled & set(one.lines["row"].to_pylist()))
        found.append(LabelledRun(one, folder, rows_done, first_row))
        first_row += max(one.run.index["row"].to_pylist(), default=-1) + 1
    return RepliesToLabel(location, rubric, tuple(found))


def labels_of(location: Location, rubric: Rubric, judge: str, one: RunToLabel) -> dict[int, str | None]:
    """Read the labels that a judge gave the replies of a run, by row; None where none could be read.

    Args:
        location: Where verdicts are kept.
        rubric: The rubric.
        judge: Name of the judge.
        one: The run.

    Raises:
        StoreError: A file of verdicts is damaged.
    """
    folder = verdict_folder(rubric.name, judge, one.folder)
    told = read_verdicts(location, folder, sorted(one.run.committed))
    return dict(zip(told["row"].to_pylist(), told["label"].to_pylist(), strict=True))
