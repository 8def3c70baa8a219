"""Open the source of a job's requests, that of a stored run included. Reads files and stores."""

from __future__ import annotations

from ...jobs.errors import InputError
from ...jobs.files.store_url import is_s3
from ...jobs.sources.load import load_source
from ...jobs.sources.replay_source import ReplaySource
from ...jobs.sources.source import RequestSource
from ...jobs.specs.spec import JobSpec
from ...jobs.work.units import WorkUnit
from ...storage.format.planned_units import read_units
from ...storage.locations.location import open_location
from ...storage.query.run import Run, open_run
from ...storage.query.stored_texts import FIELD, TextsOfRun
from ...storage.run.run_store import read_run_record


def open_source(spec: JobSpec, catalog_directory: str | None = None) -> RequestSource:
    """Open the source of a job's requests; see ``load_source``, which opens those that need no store.

    Args:
        spec: The job.
        catalog_directory: Path of the catalog on this machine if it differs from that in the spec; None: the spec's.

    Raises:
        InputError: A file or a run is missing, or breaks its format.
        StoreError: The run whose texts are read is damaged.
    """
    run = replayed_run(spec)
    if run is None:
        return load_source(spec, catalog_directory)
    assert spec.conversations is not None
    return ReplaySource(TextsOfRun(run, _planned(spec)), spec.conversations.rendering or "tokens")


def _planned(spec: JobSpec) -> dict[str, WorkUnit] | None:
    """Read the units of a job that was planned already, so that it can be finished though the other run has grown."""
    location = open_location(spec.store.url, spec.store.endpoint_url, spec.store.access)
    record = read_run_record(location)
    begun = None if record is None else record.spec.conversations
    if record is None or begun is None or spec.conversations is None or begun.texts_of != spec.conversations.texts_of:
        return None
    return read_units(location, record)


def replayed_run(spec: JobSpec) -> Run | None:
    """Open the run whose texts a job reads again; None where it reads no run's.

    Where both stores are on S3, it is read from the server of the job's store, and with the same access.

    Args:
        spec: The job.

    Raises:
        InputError: There is no run, or it is the job's own store.
        StoreError: Its record is damaged.
    """
    if spec.conversations is None or spec.conversations.texts_of is None:
        return None
    url, store = spec.conversations.texts_of, spec.store
    endpoint_url, access = (store.endpoint_url, store.access) if is_s3(url) and is_s3(store.url) else (None, None)
    try:
        run = open_run(url, endpoint_url, access)
    except InputError as error:
        raise InputError(error.message, code=error.code, field=FIELD, file=error.file, hint=error.hint) from None
    if run.url == store.url:
        raise InputError(
            "is the store of this job, which needs one of its own.",
            code="same_store",
            field=FIELD,
            hint="Give the job another store.url.",
        )
    return run
