"""Judge the replies of a sweep by a rubric: what is left under all settings, in one queue, by one judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from ...jobs.judging.costs import Spending
from ...jobs.judging.outcomes import Outcome
from ...jobs.judging.queue import JudgingQueue, UnitToJudge
from ...jobs.judging.requests import Judged
from ...jobs.judging.rubrics import Rubric
from ...jobs.text_tokens import prompt_tokens
from ...storage.derived.verdicts import (
    read_verdict_record,
    read_verdicts,
    write_verdict_record,
    write_verdicts,
)
from ...storage.format.judge_record import JudgeRecord
from ...storage.format.sweep_record import verdict_folder
from ...storage.locations.location import Location
from ...storage.query.run import Run, run_at
from ...storage.run.commits import read_commit, read_rollouts
from ..judging.judge_run import JudgeSettings, Judging, agreed_record, ask, judging_of, open_judge
from ..run.progress import Progress
from .prepare import PreparedSweep

_TEXTS = ["row", "question", "response"]


@dataclass(frozen=True, eq=False)
class SettingToJudge:
    """The replies under one setting, and which of them a judge has judged.

    Attributes:
        run: The run of the setting.
        folder: Folder of the judge's verdicts on it, below the sweep's.
        rows_done: Rows of the replies that have a verdict.
        first_row: What is added to a row of the run, so that rows of all settings differ.
    """

    run: Run
    folder: str
    rows_done: frozenset[int]
    first_row: int

    @cached_property
    def lines(self) -> pa.Table:
        """Lines of the index of the replies that are not empty: of those there is something to judge."""
        return self.run.index.filter(self.run.index["has_vector"])

    @property
    def left(self) -> dict[str, list[int]]:
        """Rows without a verdict, by unit."""
        rows: dict[str, list[int]] = {}
        for unit_id, row in zip(self.lines["unit_id"].to_pylist(), self.lines["row"].to_pylist(), strict=True):
            if row not in self.rows_done:
                rows.setdefault(unit_id, []).append(row)
        return rows

    def unit_rows(self, unit_id: str) -> frozenset[int]:
        """Return the rows of all replies of a unit."""
        pairs = zip(self.run.index["unit_id"].to_pylist(), self.run.index["row"].to_pylist(), strict=True)
        return frozenset(row for unit, row in pairs if unit == unit_id)


@dataclass(frozen=True, eq=False)
class SweepToJudge:
    """The replies of a sweep.

    Attributes:
        location: Folder of the sweep.
        rubric: The rubric.
        settings: The replies under each setting.
    """

    location: Location
    rubric: Rubric
    settings: tuple[SettingToJudge, ...]

    @property
    def num_replies(self) -> int:
        """Number of replies that are not empty."""
        return sum(one.lines.num_rows for one in self.settings)

    @property
    def num_done(self) -> int:
        """Number of them that have a verdict."""
        return sum(len(one.rows_done) for one in self.settings)

    def units(self) -> Iterator[UnitToJudge]:
        """Read the units with replies that are left, one after another; ids are those of ``place``.

        Raises:
            StoreError: The texts of a unit are missing or damaged.
        """
        rubric_tokens = prompt_tokens(len(self.rubric.prompt.split()))
        form = self.rubric.form
        for number, one in enumerate(self.settings):
            # The prompt is an upper bound of the question in it.
            lengths = {
                line["row"]: line["num_prompt_tokens"] + line["num_content_tokens"]
                for line in one.lines.select(["row", "num_prompt_tokens", "num_content_tokens"]).to_pylist()
            }
            for unit_id, rows in one.left.items():
                texts = read_rollouts(one.run.location, read_commit(one.run.location, unit_id), _TEXTS)
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
        one = self.settings[int(number)]
        of_run = [replace(outcome, row=outcome.row - one.first_row) for outcome in outcomes]
        write_verdicts(self.location, one.folder, unit_id, of_run, self.rubric.labels, one.unit_rows(unit_id))


def find_replies(sweep: PreparedSweep, rubric: Rubric, judge: str) -> SweepToJudge:
    """Find the replies of a sweep and which of them a judge has judged; no text is read.

    Args:
        sweep: The sweep.
        rubric: The rubric.
        judge: Name of the judge.

    Raises:
        StoreError: A file of verdicts is damaged.
    """
    found: list[SettingToJudge] = []
    first_row = 0
    for one in sweep.settings:
        run = run_at(one.job.location)
        folder = f"{verdict_folder(rubric.name, judge)}/{one.setting.folder}"
        rows = run.index["row"].to_pylist()
        judged = set(read_verdicts(sweep.location, folder, sorted(run.committed))["row"].to_pylist())
        found.append(SettingToJudge(run, folder, frozenset(judged & set(rows)), first_row))
        first_row += max(rows, default=-1) + 1
    return SweepToJudge(sweep.location, rubric, tuple(found))


def judge_sweep(to_judge: SweepToJudge, settings: JudgeSettings, progress: Progress) -> Judging:
    """Judge the replies that are left, and keep each unit's verdicts as soon as it has all.

    Args:
        to_judge: The replies.
        settings: The judge and its limits.
        progress: Shows how far it is.

    Returns:
        How it ended; ``scored`` counts the replies that got a label. Check ``left``.

    Raises:
        InputError: The judge is wrong, or its name belongs to another judge or another text of the rubric.
        StoreError: Texts or verdicts are damaged.
        KeyboardInterrupt: It was stopped; what was judged is kept.
    """
    spending = Spending(settings.prices, settings.max_usd, settings.max_tokens)
    record_to_keep(to_judge, settings)
    queue = JudgingQueue(to_judge.units(), spending)
    num_left = to_judge.num_replies - to_judge.num_done
    if num_left:
        with closing(open_judge(settings, progress)) as judge:
            # Compared once more: opening a judge takes long, and another may have taken the name meanwhile.
            write_verdict_record(to_judge.location, to_judge.rubric.name, record_to_keep(to_judge, settings))
            ask(judge, queue, num_left, to_judge.write, progress)
    return judging_of(queue, spending, to_judge.num_replies, to_judge.num_done)


def record_to_keep(to_judge: SweepToJudge, settings: JudgeSettings) -> JudgeRecord:
    """Compare a judge with the one that has its name, and return the record of both.

    Args:
        to_judge: The replies.
        settings: The judge.

    Raises:
        InputError: Another judge has the name, or the rubric of that name has another text by now.
        StoreError: The record is damaged.
    """
    rubric = to_judge.rubric
    asked = settings.record({rubric.name: rubric.digest})
    known = read_verdict_record(to_judge.location, rubric.name, settings.name)
    return asked if known is None else agreed_record(known, asked)
