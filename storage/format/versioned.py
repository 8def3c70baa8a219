"""Records that have a version of their own, besides that of the store's layout."""

from __future__ import annotations

from typing import TypeVar

from ...jobs.errors import StoreError
from ..locations.location import Location
from .records import parse_record
from .sealed import VersionedRecord

V = TypeVar("V", bound=VersionedRecord)


def read_versioned(location: Location, path: str, model: type[V], version: int, what: str) -> V | None:
    """Read a record with a version; None where there is none.

    Args:
        location: Where it lies.
        path: Its path there.
        model: Type of the record.
        version: The version that can be read.
        what: What it records and whether that is one thing, for errors, as ``the sweep has``.

    Raises:
        StoreError: It is damaged, or of another version.
    """
    data = location.read(path)
    if data is None:
        return None
    url = f"{location.url}/{path}"
    record = parse_record(model, data, url)
    if record.version != version:
        raise StoreError(
            f"{what} version {record.version}; this Persona Atlas reads {version}.",
            code="newer_layout",
            file=url,
            hint="Upgrade persona-atlas.",
        )
    return record
