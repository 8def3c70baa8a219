"""``units-<sha256>.parquet``: every planned unit of a run, so that missing units can be listed without the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import pyarrow as pa
from pydantic import TypeAdapter

from ...jobs.errors import StoreError
from ...jobs.work.units import WorkUnit
from ..locations.location import Location
from . import layout
from .parquet import from_parquet, to_parquet
from .records import RunRecord
from .stored_units import UnitField, stored_unit

UNIT_SCHEMA = pa.schema(
    [
        ("unit_id", pa.string()),
        ("kind", pa.string()),
        ("persona", pa.string()),
        ("polarity", pa.string()),
        ("prompt_index", pa.int32()),
        ("question_indices", pa.list_(pa.int32())),
        ("samples", pa.int32()),
    ]
)
"""Columns: the fields of a ``StoredUnit``."""

LATER_SAMPLES_SCHEMA = pa.schema([*UNIT_SCHEMA, ("first_sample", pa.int32())])
"""Columns of the units of an addition that gives earlier questions more samples."""

CONVERSATION_UNIT_SCHEMA = pa.schema(
    [
        *UNIT_SCHEMA,
        ("sample_indices", pa.list_(pa.int32())),
        ("conversation_indices", pa.list_(pa.int32())),
        ("turn_indices", pa.list_(pa.list_(pa.int32()))),
    ]
)
"""Columns: the fields of a ``StoredConversationUnit``."""


def encode_units(units: Iterable[WorkUnit]) -> bytes:
    """Write units as a Parquet file, in their order.

    Args:
        units: All of one run: either all of conversations, or none.
    """
    lines = [stored_unit(unit).model_dump() for unit in units]
    schema = CONVERSATION_UNIT_SCHEMA if lines and "turn_indices" in lines[0] else UNIT_SCHEMA
    if any("first_sample" in line for line in lines):
        schema = LATER_SAMPLES_SCHEMA
        lines = [{"first_sample": 0} | line for line in lines]
    return to_parquet(pa.Table.from_pylist(lines, schema=schema))


def read_unit_ids(location: Location, record: RunRecord) -> list[str] | None:
    """Read the ids of the planned units, in the order of the plan; None where a list of them is missing or damaged."""
    ids: list[str] = []
    for checksum in record.unit_lists:
        data = location.read(layout.units_path(checksum))
        if data is None or sha256(data).hexdigest() != checksum:
            return None
        ids += from_parquet(data, ["unit_id"])["unit_id"].to_pylist()
    return ids


def read_units(location: Location, record: RunRecord) -> dict[str, WorkUnit]:
    """Read the planned units of a run by id, in the order of the plan; those of its additions follow.

    Raises:
        StoreError: A list is missing, or its SHA-256 is not that of the record that names it.
    """
    units = [unit for checksum in record.unit_lists for unit in _read_list(location, checksum)]
    return {unit.unit_id: unit for unit in units}


def _read_list(location: Location, checksum: str) -> list[WorkUnit]:
    path = layout.units_path(checksum)
    data = location.read(path)
    if data is None or sha256(data).hexdigest() != checksum:
        state = "is missing" if data is None else "is not the one the run was begun with"
        raise StoreError(
            f"the list of planned units {state}.",
            code="bad_object",
            file=f"{location.url}/{path}",
            hint="Restore it from a copy. Running the same spec again also completes the run.",
        )
    return TypeAdapter(list[UnitField]).validate_python(from_parquet(data).to_pylist())
