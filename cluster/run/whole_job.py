"""Run a prepared job to its report; shared by the command line and the Python interface."""

from __future__ import annotations

from ...jobs.errors import AtlasError
from ...jobs.scheduling.job_state import JobState
from ...storage.run.commits import committed_units
from .backend import OpenBackend
from .conclude import Conclusion, conclude
from .job import Outcome, worked_job
from .prepare import Job
from .progress import Progress
from .status_reporter import StatusReporter


def finish_job(
    job: Job, progress: Progress, open_backend: OpenBackend, *, reduces: bool = True
) -> tuple[Outcome, Conclusion]:
    """Run the missing units of a job, reduce the committed ones and write the report.

    Args:
        job: The prepared job.
        progress: Prints progress.
        open_backend: Opens what runs the workers; see ``worked_job``.
        reduces: Whether the committed units are reduced.

    Returns:
        How the units ended, and the results of the run.

    Raises:
        AtlasError: See ``worked_job`` and ``conclude``.
        KeyboardInterrupt: Ctrl-C was pressed. Raised again after printing how many units are committed.
    """
    if job.committed:
        progress.say(f"{len(job.committed)} of {len(job.plan.units)} units are already committed.")
    try:
        with StatusReporter() as reporter, worked_job(job, progress, reporter, open_backend) as outcome:
            conclusion = conclude(job, progress, reporter, reduces=reduces)
            reporter.end(JobState.SUCCEEDED if outcome.is_complete else JobState.FAILED)
            reporter.write()
    except KeyboardInterrupt:
        _say_what_is_kept(job, progress)
        raise
    return outcome, conclusion


def _say_what_is_kept(job: Job, progress: Progress) -> None:
    try:
        kept = f"{len(committed_units(job.location))} of {len(job.plan.units)} units are committed and kept"
    except AtlasError as error:
        # Ctrl-C ended the job, and stays the reason where the store cannot be read just then.
        kept = f"committed units are kept; the store did not say how many ({error.message.rstrip('.')})"
    progress.say(f"{kept}; the same call or the same command resumes.")
