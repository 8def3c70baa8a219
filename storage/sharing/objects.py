"""Which objects of a store are shared, and in which order, so that a reader sees a store once it is complete."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from hashlib import sha1, sha256
from typing import Literal

from ..format import layout
from ..locations.location import Location

Share = Literal["vectors", "all"]

_FOLDERS = (
    layout.ACTIVATIONS,
    layout.ROLLOUTS,
    layout.COMMITS,
    layout.ADDITIONS,
    layout.SCORES,
    layout.VERDICTS,
    layout.SUMS,
    layout.PROJECTIONS,
    layout.ANALYSIS,
)
"""Folders that are shared. Not those about how a run was made, with names of hosts and processes, and no folder that is
not a store's: whatever else lies beside a run, keys and notes too, is its owner's."""

_RECORDS = (layout.RUN_RECORD, layout.VECTORS_RECORD, layout.CURRENT_REDUCTION)
"""Objects that make a store, or its vectors, visible to readers."""

_OF_VECTORS = (
    layout.RUN_RECORD,
    layout.VECTORS_RECORD,
    layout.CAPPING_CONFIG,
    layout.SKIPPED,
    layout.INDEX,
    layout.CURRENT_REDUCTION,
    layout.VECTORS_ONLY,
)
"""Not the report: it shows responses."""

_FILES = (*_OF_VECTORS, layout.CHUNKS, layout.REPORT, "zarr.json")

_CACHES = (layout.INDEX, layout.CHUNKS, layout.CURRENT_REDUCTION, layout.REPORT)


def shared_paths(location: Location, share: Share) -> dict[str, int]:
    """List the objects of a store that are shared, with their lengths in bytes, the records last.

    Args:
        location: The store.
        share: ``vectors``: the current reduction, the run's record and additions, its index, its plan and its scores;
            no activations and no responses. ``all``: every object of a store but those about the drivers that wrote it.
    """
    kept = {path: size for path, size in location.sizes("").items() if _is_of_store(path)}
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


def _is_of_store(path: str) -> bool:
    folder, has_folder, _ = path.partition("/")
    is_known = folder in _FOLDERS if has_folder else path in _FILES or _is_plan(path)
    return is_known and not path.split("/")[-1].startswith(".")


def _is_plan(path: str) -> bool:
    return path.startswith(("units-", "interventions-")) and path.endswith(".parquet")


def _is_of_vectors(path: str, current: tuple[str, ...]) -> bool:
    is_whole_folder = path.split("/")[0] in (layout.SCORES, layout.ADDITIONS)
    return path in _OF_VECTORS or _is_plan(path) or is_whole_folder or any(path.startswith(place) for place in current)


def may_be_replaced(path: str) -> bool:
    """Whether an object of a store may change: a cache, the current reduction, what judges said, an array's shape."""
    return (
        path in _CACHES or path.split("/")[0] in (layout.SCORES, layout.VERDICTS) or path.split("/")[-1] == "zarr.json"
    )


def is_grown(before: bytes, after: bytes) -> bool:
    """Whether two records of runs are of one run, which has grown in between: only the mark of that may differ.

    Args:
        before: ``run.json`` of the copy.
        after: ``run.json`` of the run.
    """
    try:
        first, second = json.loads(before), json.loads(after)
        versions = (first.pop("layout_version"), second.pop("layout_version"))
        return first | {"seal": ""} == second | {"seal": ""} and versions == (
            layout.LAYOUT_VERSION,
            layout.GROWN_LAYOUT_VERSION,
        )
    except (ValueError, AttributeError, KeyError, TypeError):
        return False


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
