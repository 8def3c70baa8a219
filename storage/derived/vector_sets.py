"""Stores of imported vectors: a reduction without a run, and the record that says where it comes from.

The record is written last: without it there is no such store, and what a crash left behind is refused as any other
content is.
"""

from __future__ import annotations

from contextlib import suppress

from ...jobs.errors import AtlasError, InputError
from ..format import layout
from ..format.records import parse_record
from ..format.vectors_record import VectorsRecord
from ..locations.location import Location
from .reductions import Reduction, write_reduction


def read_vectors_record(location: Location) -> VectorsRecord | None:
    """Read ``vectors.json``; None when there is none.

    Raises:
        StoreError: The record is damaged or of another layout version.
    """
    data = location.read(layout.VECTORS_RECORD)
    if data is None:
        return None
    return parse_record(VectorsRecord, data, f"{location.url}/{layout.VECTORS_RECORD}")


def require_empty(location: Location) -> None:
    """Raise unless a store is new.

    Raises:
        InputError: There is something in it.
    """
    if not location.is_empty():
        raise InputError(
            f"{location.url} is not empty, and imported vectors need a store of their own.",
            code="not_empty",
            field="STORE",
            hint="Choose a new directory or prefix.",
        )


def write_vector_set(
    location: Location, record: VectorsRecord, reduction: Reduction, capping_config: bytes | None
) -> None:
    """Write imported vectors to a new store.

    Args:
        location: The store.
        record: Where the vectors come from.
        reduction: The vectors.
        capping_config: The source's own file of capping settings, kept as it is; None if it has none.

    Raises:
        InputError: The store is not empty.
    """
    require_empty(location)
    try:
        write_reduction(location, reduction)
        if capping_config is not None:
            location.write(layout.CAPPING_CONFIG, capping_config)
        is_first = location.create(layout.VECTORS_RECORD, record.to_bytes())
    except BaseException:
        # The first error is the one to report: the place may be unreachable.
        with suppress(AtlasError):
            location.delete(location.sizes(""))
            location.remove_empty_folder()
        raise
    if not is_first:
        raise InputError(f"other vectors were imported to {location.url} meanwhile.", code="not_empty", field="STORE")
