"""Which objects of a store are shared, and in which order, so that a reader sees a store once it is complete."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from hashlib import sha1, sha256
from typing import Literal

from ..format import layout
from ..locations.location import Location

Share = Literal["vectors", "all"]

_OF_DRIVERS = (layout.DRIVERS, layout.STATUS, layout.RECENT, layout.WITHDRAWN)
"""Folders about how a run was made: names of hosts and processes, and caches of a running driver."""

_RECORDS = (layout.RUN_RECORD, layout.VECTORS_RECORD, layout.CURRENT_REDUCTION)
"""Objects that make a store, or its vectors, visible to readers."""

_OF_VECTORS = (
    layout.RUN_RECORD,
    layout.VECTORS_RECORD,
    layout.CAPPING_CONFIG,
    layout.SKIPPED,
    layout.INDEX,
    layout.CURRENT_REDUCTION,
    layout.REPORT,
    layout.VECTORS_ONLY,
)

_CACHES = (layout.INDEX, layout.CHUNKS, layout.CURRENT_REDUCTION, layout.REPORT)


def shared_paths(location: Location, share: Share) -> dict[str, int]:
    """List the objects of a store that are shared, with their lengths in bytes, the records last.

    Args:
        location: The store.
        share: ``vectors``: the current reduction, the run's record, its index, its plan and its scores; no activations
            and no texts. ``all``: everything but what is about the drivers that wrote it.
    """
    everything = location.sizes("")
    kept = {
        path: size
        for path, size in everything.items()
        if path.split("/")[0] not in _OF_DRIVERS and not path.split("/")[-1].startswith(".")
    }
    if share == "vectors":
        current = _current_reduction(location)
        kept = {path: size for path, size in kept.items() if _is_of_vectors(path, current)}
    return {path: kept[path] for path in sorted(kept, key=lambda path: (path in _RECORDS, path))}


def _current_reduction(location: Location) -> tuple[str, ...]:
    """Return the paths of the current reduction's group, with a slash, and of its record; none without a reduction."""
    data = location.read(layout.CURRENT_REDUCTION)
    if data is None:
        return ()
    pointer = json.loads(data)
    return (f"{pointer['path']}/", layout.reduction_record_path(pointer["reduction_id"]))


def _is_of_vectors(path: str, current: tuple[str, ...]) -> bool:
    is_plan = path.startswith("units-") and path.endswith(".parquet")
    is_score = path.startswith(f"{layout.SCORES}/")
    return path in _OF_VECTORS or is_plan or is_score or any(path.startswith(place) for place in current)


def may_be_replaced(path: str) -> bool:
    """Whether an object of a store may change: a cache, the current reduction, the shape of an array."""
    return path in _CACHES or path.split("/")[-1] == "zarr.json"


def content_ids(data: bytes) -> tuple[str, str]:
    """Return the ids under which the hub knows a file's content: SHA-256, and the SHA-1 of its git blob."""
    return sha256(data).hexdigest(), sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def batches(paths: Iterable[str], sizes: dict[str, int], max_files: int, max_bytes: int) -> Iterable[list[str]]:
    """Cut a list of objects into parts of bounded number and size; an object larger than that is a part by itself.

    Example:
        >>> [part for part in batches(["a", "b", "c"], {"a": 5, "b": 6, "c": 1}, max_files=2, max_bytes=10)]
        [['a'], ['b', 'c']]
    """
    part: list[str] = []
    num_bytes = 0
    for path in paths:
        if part and (len(part) == max_files or num_bytes + sizes[path] > max_bytes):
            yield part
            part, num_bytes = [], 0
        part.append(path)
        num_bytes += sizes[path]
    if part:
        yield part


def named(paths: Collection[str]) -> str:
    """Name the first of some paths, and say how many more there are."""
    shown = sorted(paths)[:3]
    return ", ".join(shown) + (f" and {len(paths) - len(shown):,} more" if len(paths) > len(shown) else "")
