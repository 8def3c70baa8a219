"""Run the missing units of a prepared sweep, setting after setting, in one Ray session."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ...storage.format.sweep_record import SWEEP_RECORD
from ..run.backend import OpenBackend
from ..run.job import Outcome
from ..run.prepare import prepare_job
from ..run.progress import Progress
from ..run.whole_job import finish_job
from .prepare import PreparedSweep


@dataclass(frozen=True)
class SweepOutcome:
    """How the units of a sweep ended.

    Attributes:
        outcomes: How those of each setting ended, by its name, in the order of the spec.
    """

    outcomes: dict[str, Outcome]

    @property
    def planned(self) -> int:
        """Number of units of all settings."""
        return sum(outcome.planned for outcome in self.outcomes.values())

    @property
    def done(self) -> int:
        """Number of units that are committed."""
        return sum(outcome.done for outcome in self.outcomes.values())

    @property
    def worked(self) -> int:
        """Number of units that this call committed."""
        return sum(outcome.worked for outcome in self.outcomes.values())

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.done == self.planned


def run_sweep(
    sweep: PreparedSweep,
    progress: Progress,
    open_backend: OpenBackend,
    open_session: Callable[[], AbstractContextManager[object]],
) -> SweepOutcome:
    """Run the missing units of every setting. Units that fail are reported, and the other settings go on.

    Args:
        sweep: The prepared sweep.
        progress: Prints progress.
        open_backend: Opens what runs the workers of one setting; see ``worked_job``.
        open_session: Opens what all settings share, such as a Ray session, and is called only if units are missing.

    Raises:
        AtlasError: See ``worked_job``. What was committed stays, and the next call does the rest.
        KeyboardInterrupt: Ctrl-C was pressed; the same holds.
    """
    if not sweep.is_recorded:
        sweep.location.write(SWEEP_RECORD, sweep.record.to_bytes())
    if not sweep.num_missing:
        return SweepOutcome({one.setting.name: _nothing_left(len(one.job.plan.units)) for one in sweep.settings})
    outcomes: dict[str, Outcome] = {}
    with open_session():
        for number, one in enumerate(sweep.settings, start=1):
            progress.say(f"Setting {number} of {len(sweep.settings)}: {one.setting.name}.")
            # Others may have worked on it while the settings before it ran.
            job = one.job if number == 1 else prepare_job(one.job.plan.spec, progress, edits=one.job.plan.edits)
            outcomes[one.setting.name], _ = finish_job(job, progress, open_backend, reduces=False)
    return SweepOutcome(outcomes)


def _nothing_left(num_units: int) -> Outcome:
    return Outcome(num_units, num_units, 0, ())
