"""Prepare a sweep: plan the run of every setting and compare it with its store, before anything is started or written.

A sweep is a run for each setting, below one URL. A run has one set of edits, and everything that reads a run relies on
that: its reduction, its report and its scores would otherwise mix what different models said. So each setting is a
store like any other, which resumes, is verified and compared by itself, and a setting is added without touching others.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...jobs.errors import InputError
from ...jobs.specs.sweep_spec import SweepSetting, SweepSpec
from ...storage.derived.verdicts import read_sweep_record
from ...storage.format.layout import RUN_RECORD, VECTORS_RECORD
from ...storage.format.sweep_record import StoredSetting, SweepRecord
from ...storage.locations.location import Location, open_location
from ..run.prepare import Job, prepare_job
from ..run.progress import Progress


@dataclass(frozen=True)
class PreparedSetting:
    """One setting of a sweep that is planned and matches its store.

    Attributes:
        setting: The setting.
        job: Its job.
    """

    setting: SweepSetting
    job: Job

    @property
    def edits_digest(self) -> str:
        """Digest of its edits; empty for the model as it is."""
        return "" if self.job.plan.edits is None else self.job.plan.edits.digest

    @property
    def stored(self) -> StoredSetting:
        """What the record of the sweep says of it."""
        asked = tuple(entry.asked for entry in self.setting.interventions)
        return StoredSetting(
            name=self.setting.name, folder=self.setting.folder, edits=self.edits_digest, interventions=asked
        )


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep whose settings are all planned and match their stores.

    Attributes:
        spec: The sweep.
        location: Its folder.
        settings: The settings, in the order of the spec.
        record: The record to write.
        is_recorded: Whether the sweep has that record already.
    """

    spec: SweepSpec
    location: Location
    settings: tuple[PreparedSetting, ...]
    record: SweepRecord
    is_recorded: bool

    @property
    def num_units(self) -> int:
        """Number of units of all settings."""
        return sum(len(one.job.plan.units) for one in self.settings)

    @property
    def num_missing(self) -> int:
        """Number of units that are not committed."""
        return sum(one.job.num_missing for one in self.settings)


def prepare_sweep(spec: SweepSpec, progress: Progress) -> PreparedSweep:
    """Plan every setting of a sweep and compare it with its store; nothing is written.

    Args:
        spec: The sweep.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: A setting cannot be resolved, two have the same edits, the store of one belongs to another run, or
            the folder holds something else; names the field.
        StoreError: A store is damaged.
    """
    store = spec.job.store
    location = open_location(store.url, store.endpoint_url, store.access)
    _refuse_other_store(location)
    earlier = read_sweep_record(location)
    prepared: list[PreparedSetting] = []
    for number, setting in enumerate(spec.settings):
        one = _prepare(spec, number, setting, progress)
        same = next((other for other in prepared if other.edits_digest == one.edits_digest), None)
        if same is not None:
            raise InputError(
                f"{setting.name!r} comes to the same edits as {same.setting.name!r}.",
                code="equal_settings",
                field=f"sweep.settings.{number}",
                hint="Leave one of them out: the same replies would be made twice.",
            )
        prepared.append(one)
    record = SweepRecord.of((one.stored for one in prepared), earlier)
    return PreparedSweep(spec, location, tuple(prepared), record, record == earlier)


def _prepare(spec: SweepSpec, number: int, setting: SweepSetting, progress: Progress) -> PreparedSetting:
    try:
        return PreparedSetting(setting, prepare_job(spec.job_of(setting), progress))
    except InputError as error:
        if error.field is None or not error.field.startswith("interventions"):
            raise
        # The user wrote the entry in a setting, and other settings may be fine.
        raise InputError(
            error.message,
            code=error.code,
            field=f"sweep.settings.{number}.{error.field}",
            file=error.file,
            hint=error.hint,
        ) from None


def _refuse_other_store(location: Location) -> None:
    taken = next((name for name in (RUN_RECORD, VECTORS_RECORD) if location.size(name) is not None), None)
    if taken is not None:
        raise InputError(
            f"{location.url} holds {'a run' if taken == RUN_RECORD else 'imported vectors'}, and a sweep needs a "
            "folder of its own.",
            code="other_store",
            field="store.url",
            hint="Name a new folder; the runs of the settings lie below it.",
        )
