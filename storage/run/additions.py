"""The additions to a run: read them with its record, and add one. See docs/design/007-runs-that-grow.md.

An addition is in force once its record exists; the record is created conditionally, after everything that it names. The
mark in ``run.json`` comes before it, and only says that there may be additions: readers of a run that never grew list
nothing, and versions that know nothing of additions refuse the store.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from ...jobs.errors import InputError, StoreError
from ...jobs.specs.spec import digest_of
from ..format import layout
from ..format.additions import AdditionRecord
from ..format.records import RunRecord, parse_record
from ..locations.location import Location


def with_additions(location: Location, record: RunRecord) -> RunRecord:
    """Return a run's record with all its additions; the same record where the run never grew.

    Args:
        location: The run's store.
        record: What ``run.json`` says.

    Raises:
        StoreError: An addition is damaged, missing, or of another run.
    """
    if record.layout_version == layout.LAYOUT_VERSION:
        return record
    found: list[AdditionRecord] = []
    before = record.plan_digest
    for number in range(1, _newest_number(location) + 1):
        addition = _read(location, number)
        if addition.number != number or addition.grown_from != before:
            raise _damaged(location, number, "is not what was added to this run")
        before = addition.plan_digest
        found.append(addition)
    return record.grown(found) if found else record


def add_to_run(location: Location, record: RunRecord, addition: AdditionRecord, units: bytes) -> None:
    """Add units to a run: write their list, mark the run as one that grows, then create the addition's record.

    Calling it again with the same addition is safe. The caller holds the lease.

    Args:
        location: The run's store.
        record: The run's record, with the additions before this one.
        addition: The addition.
        units: The encoded list of the units that are added, as ``encode_units`` returns it.

    Raises:
        InputError: Another driver has added something in the meantime; nothing of this addition counts.
        StoreError: A record is damaged.
    """
    # The list first, so that an addition that has a record always has its list too.
    location.write(layout.units_path(addition.units_sha256), units)
    # Marked before there is an addition, so that no other version ever sees one without the mark.
    _mark(location)
    path = layout.addition_path(addition.number)
    # When the answer to a successful PUT is lost, the client sends it again and is refused by its own object.
    if location.create(path, addition.to_bytes()) or location.read(path) == addition.to_bytes():
        return
    raise grown_meanwhile(location)


def grown_meanwhile(location: Location) -> InputError:
    """Make the error for a run that another driver has added to since a job was planned."""
    return InputError(
        f"the run at {location.url} has grown by another job in the meantime.",
        code="run_has_grown",
        field="store.url",
        hint="Nothing was added by this one. Give the same command again: it is then planned anew.",
    )


def _newest_number(location: Location) -> int:
    stems = (PurePosixPath(name).stem for name in location.names(layout.ADDITIONS) if name.endswith(".json"))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def _read(location: Location, number: int) -> AdditionRecord:
    path = layout.addition_path(number)
    data = location.read(path)
    if data is None:
        raise _damaged(location, number, "is missing, and later ones are there")
    return parse_record(AdditionRecord, data, f"{location.url}/{path}")


def _damaged(location: Location, number: int, reason: str) -> StoreError:
    return StoreError(
        f"addition {number} of the run {reason}.",
        code="bad_record",
        file=f"{location.url}/{layout.addition_path(number)}",
        hint="Restore it from a copy.",
    )


def _mark(location: Location) -> None:
    """Raise the layout version in ``run.json``; all other fields stay as whichever version wrote them."""
    data = location.read(layout.RUN_RECORD)
    if data is None:
        raise StoreError("the run's record was deleted.", code="bad_record", file=f"{location.url}/{layout.RUN_RECORD}")
    # Parsed, so that only a record that is whole is written again.
    record = parse_record(RunRecord, data, f"{location.url}/{layout.RUN_RECORD}")
    if record.layout_version != layout.LAYOUT_VERSION:
        return
    body = json.loads(data) | {"layout_version": layout.GROWN_LAYOUT_VERSION}
    del body["seal"]
    text = json.dumps({"seal": digest_of(body)} | body, indent=2, ensure_ascii=False)
    location.write(layout.RUN_RECORD, f"{text}\n".encode())
