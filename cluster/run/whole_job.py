"""A prepared job from its first unit to its report, the same for the command line and for Python."""

from __future__ import annotations

from collections.abc import Callable

from ...jobs.scheduling.job_state import JobState
from ...storage.run.commits import committed_units
from .conclude import Conclusion, conclude
from .job import Outcome
from .prepare import Job
from .progress import Progress
from .status_reporter import StatusReporter


def finish_job(job: Job, progress: Progress, work: Callable[[StatusReporter], Outcome]) -> tuple[Outcome, Conclusion]:
    """Do what is missing of a job, reduce what is committed and write the report.

    Args:
        job: Prepared.
        progress: Prints how far it is.
        work: Does the missing units.

    Returns:
        How the units ended, and what the run came to.

    Raises:
        AtlasError: See ``work_job`` and ``conclude``.
        KeyboardInterrupt: Somebody pressed Ctrl-C; said after telling how many units stay.
    """
    if job.committed:
        progress.say(f"{len(job.committed)} of {len(job.plan.units)} units are already committed.")
    try:
        with StatusReporter() as reporter:
            outcome = work(reporter)
            conclusion = conclude(job, progress, reporter)
            reporter.end(JobState.SUCCEEDED if outcome.is_complete else JobState.FAILED)
    except KeyboardInterrupt:
        done = len(committed_units(job.location))
        progress.say(f"{done} of {len(job.plan.units)} units are committed and kept; the same call or the same command resumes.")
        raise
    return outcome, conclusion
