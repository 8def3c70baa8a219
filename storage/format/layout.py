"""Where each thing of a run lies, by name. Pure strings; the store's map in one place.

run.json                             what the run is; written once
units-<sha256>.parquet               every planned unit; written once, before run.json
drivers/<generation>.json            leases: who may commit, and which row blocks it may hand out
status/<generation>.json             what that driver said last of how it goes; news, never the truth
activations/<hook>/<pooling>         Zarr arrays (row, layer, d_model), a shard a row block; ``tokens``: a row a token
rollouts/<unit>-<row_block>.parquet  texts, token ids, spans of one attempt
commits/<unit>.json                  written last: the attempt that counts
index.parquet                        all committed rollouts; a convenience, commits are the truth
chunks.parquet                       where in its object each committed layer lies; a convenience too
scores/<judge>/<unit>.parquet        a judge's scores of one unit
analysis/<reduction>-<own>/          Zarr group of one reduction
analysis/<reduction>.json            that it is whole, and where; written once
analysis/current.json                which reduction is the newest; written last
report.html                          the report of that reduction
"""

from __future__ import annotations

LAYOUT_VERSION = 2
"""Raised when an older reader would misread a store, or this one an older store."""

RUN_RECORD = "run.json"
INDEX = "index.parquet"
CHUNKS = "chunks.parquet"
ACTIVATIONS = "activations"
ROLLOUTS = "rollouts"
SCORES = "scores"
COMMITS = "commits"
DRIVERS = "drivers"
STATUS = "status"
ANALYSIS = "analysis"
CURRENT_REDUCTION = "analysis/current.json"
REPORT = "report.html"


def units_path(sha256: str) -> str:
    """Path of the list of planned units; its checksum is part of it, so that no other list is ever written over it."""
    return f"units-{sha256[:16]}.parquet"


def array_path(hook_point: str, pooling: str) -> str:
    """Path of an activation array."""
    return f"{ACTIVATIONS}/{hook_point}/{pooling}"


def shard_path(hook_point: str, pooling: str, row_block: int) -> str:
    """Path of the one object that holds a row block."""
    return f"{array_path(hook_point, pooling)}/c/{row_block}/0/0"


def rollouts_path(unit_id: str, row_block: int) -> str:
    """Path of an attempt's texts; the row block makes it the attempt's own."""
    return f"{ROLLOUTS}/{unit_id}-{row_block}.parquet"


def commit_path(unit_id: str) -> str:
    """Path of a unit's commit record."""
    return f"{COMMITS}/{unit_id}.json"


def scores_path(judge: str, unit_id: str) -> str:
    """Path of a judge's scores of one unit."""
    return f"{SCORES}/{judge}/{unit_id}.parquet"


def driver_path(generation: int) -> str:
    """Path of a lease."""
    return f"{DRIVERS}/{generation:06d}.json"


def status_path(generation: int) -> str:
    """Path of a driver's status."""
    return f"{STATUS}/{generation:06d}.json"


def reduction_path(name: str) -> str:
    """Path of a reduction's Zarr group; the name is its id and a part that is the writer's own."""
    return f"{ANALYSIS}/{name}"


def reduction_record_path(reduction_id: str) -> str:
    """Path of the record that names a finished reduction's group; written once, after the group."""
    return f"{ANALYSIS}/{reduction_id}.json"
