"""The replies of a sweep as a judge is to label them: those of all settings, kept in the sweep's folder."""

from __future__ import annotations

from ...jobs.judging.rubrics import Rubric
from ...storage.query.run import run_at
from ..labelling.replies import RepliesToLabel, RunToLabel, find_replies
from .prepare import PreparedSetting, PreparedSweep


def run_of(one: PreparedSetting) -> RunToLabel:
    """Open the run of a setting.

    Args:
        one: A setting whose run has begun.

    Raises:
        StoreError: The run is damaged.
    """
    return RunToLabel(run_at(one.job.location), one.setting.folder)


def replies_of_sweep(sweep: PreparedSweep, rubric: Rubric, judge: str) -> RepliesToLabel:
    """Find the replies of a sweep and which of them a judge has labelled; no text is read.

    Args:
        sweep: The sweep; the run of every setting has begun.
        rubric: The rubric.
        judge: Name of the judge.

    Raises:
        StoreError: A file of verdicts is damaged.
    """
    return find_replies(sweep.location, rubric, judge, (run_of(one) for one in sweep.settings))
