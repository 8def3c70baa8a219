"""The edits of a run in its store: ``interventions-<sha256>.parquet`` with the vectors, and what ``run.json`` says.

The table has a line for each edit, in the order in which they are applied. With the table a run is resumed and
recomputed as it was begun, whatever becomes of the axis that its spec names.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from ...jobs.errors import StoreError
from ...jobs.interventions import Ablate, AddVector, Cap, Direction, Edit, Positions
from ...jobs.work.run_edits import EditKind, ResolvedEntry, RunEdits, entry_text, kind_of
from . import layout
from .parquet import from_parquet, to_parquet
from .sealed import Record

EDIT_SCHEMA = pa.schema(
    [
        ("entry", pa.int32()),
        ("kind", pa.string()),
        ("layer", pa.int32()),
        ("positions", pa.string()),
        ("number", pa.float64()),
        ("vector", pa.list_(pa.float32())),
    ]
)
"""Columns: entry of the spec, counted from 0; ``add``, ``ablate`` or ``cap``; layer; tokens; coefficient of an added
vector or floor of a cap along the vector, null for an ablation; the vector."""


class StoredEntry(Record):
    """What an entry of ``interventions`` became.

    Attributes:
        asked: The entry as the spec has it, without fields that have their default.
        source: Where the axis or the capping file was read.
        model: The model of the axis, as its source names it.
        reduction: Id of the reduction of the axis.
        note: A sentence that belongs to every number made with it; empty for none.
        kind: What its edits do.
        layers: Their layers.
        numbers: Coefficient or floor at each layer, along the vector that is stored there; empty for an ablation. The
            vectors of caps and of steering lie along the axis, so that these are in axis sign.
    """

    asked: dict[str, Any]
    source: str
    model: str | None
    reduction: str | None
    note: str
    kind: EditKind
    layers: tuple[int, ...]
    numbers: tuple[float, ...]

    def __str__(self) -> str:
        """Say what it does, where, and with which numbers."""
        return entry_text(self.asked, self.source, self.layers, self.numbers, self.note)


class StoredEdits(Record):
    """The edits of a run, as ``run.json`` has them.

    Attributes:
        digest: Digest of what is done; part of the run's identity.
        sha256: SHA-256 of the table, as hexadecimal digits.
        num_bytes: Length of the table in bytes.
        entries: The entries of the spec, in their order.
    """

    digest: str
    sha256: str
    num_bytes: int
    entries: tuple[StoredEntry, ...]

    @property
    def path(self) -> str:
        """Path of the table in the store."""
        return layout.edits_path(self.sha256)


def stored_edits(edits: RunEdits) -> tuple[StoredEdits, bytes]:
    """Describe edits for a run's record, and encode their table.

    Args:
        edits: The edits.

    Returns:
        The description, and the bytes of the table. The same edits give the same bytes.
    """
    lines = [_line(number, edit) for number, entry in enumerate(edits.entries) for edit in entry.edits]
    data = to_parquet(pa.Table.from_pylist(lines, schema=EDIT_SCHEMA))
    entries = tuple(_entry(entry) for entry in edits.entries)
    return StoredEdits(digest=edits.digest, sha256=sha256(data).hexdigest(), num_bytes=len(data), entries=entries), data


def edits_of(stored: StoredEdits, data: bytes | None, url: str) -> RunEdits:
    """Decode the table of a run's edits.

    Args:
        stored: What the run's record says of it.
        data: The bytes of the table; None if it is missing.
        url: URL of the store, for errors.

    Raises:
        StoreError: It is missing, or not the one that the record names.
    """
    if data is None or sha256(data).hexdigest() != stored.sha256:
        state = "is missing" if data is None else "is not the one the run was begun with"
        raise StoreError(
            f"the table of the run's interventions {state}.",
            code="bad_object",
            file=f"{url}/{stored.path}",
            hint="Restore it from a copy.",
        )
    by_entry: list[list[Edit]] = [[] for _ in stored.entries]
    for line in from_parquet(data).to_pylist():
        by_entry[line["entry"]].append(_edit(line))
    return RunEdits(
        tuple(
            ResolvedEntry(entry.asked, entry.source, tuple(edits), entry.model, entry.reduction, entry.note)
            for entry, edits in zip(stored.entries, by_entry, strict=True)
        )
    )


def _entry(entry: ResolvedEntry) -> StoredEntry:
    return StoredEntry(
        asked=dict(entry.asked),
        source=entry.source,
        model=entry.model,
        reduction=entry.reduction,
        note=entry.note,
        kind=kind_of(entry.edits[0])[0],
        layers=entry.layers,
        numbers=entry.numbers,
    )


def _line(entry: int, edit: Edit) -> dict[str, Any]:
    kind, number = kind_of(edit)
    return {
        "entry": entry,
        "kind": kind,
        "layer": edit.layer,
        "positions": edit.positions,
        "number": number,
        "vector": edit.vector.numbers,
    }


def _edit(line: Mapping[str, Any]) -> Edit:
    layer: int = line["layer"]
    positions: Positions = line["positions"]
    vector = Direction.of(np.array(line["vector"], dtype=np.float32))
    match line["kind"]:
        case "add":
            return AddVector(layer, vector, line["number"], positions)
        case "ablate":
            return Ablate(layer, vector, positions)
        case _:
            return Cap(layer, vector, line["number"], positions)
