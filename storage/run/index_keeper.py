"""Keeps the stored index close behind the commits while a driver works, off its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import AtlasError
from ..arrays.chunks import chunk_table, read_chunks, write_chunks
from ..format.records import CommitRecord, RunRecord
from ..format.rollout_tables import in_address_order
from ..locations.location import Location
from .index import index_lines, load_index, write_index

_EVERY_S = 30.0
_AT_MOST_SHARE = 0.05
"""Of the time that may go into writing: a large run's index is written less often."""


class IndexKeeper:
    """Takes commits as they come and writes them into the index now and then. Use as a context manager.

    Leaving it writes what is left. A store that fails then costs readers some requests and no truth, so it is said and
    not raised. Lines of units whose commits were deleted are another matter: those leave the store's index at once.

    Args:
        location: The run's store.
        record: Of the run.
        say: Told when the index could not be written.

    Raises:
        StoreError: A commit record is damaged.
        TransientError: The store failed.
    """

    def __init__(self, location: Location, record: RunRecord, say: Callable[[str], None] = lambda _: None) -> None:
        self._location = location
        self._record = record
        self._say = say
        index = load_index(location, record, ask_commits=True)
        self._table = index.table
        self._known = set(index.committed)
        chunks = _only_of(index.table, read_chunks(location), record.rows_per_block)
        self._chunks = _with_new(chunks, index.read_one_by_one)
        if index.has_dropped:
            # Before a unit is done again: its old line would pass for the new attempt's, for both have one id.
            _write_both(location, record, self._table, self._chunks)
        self._added: list[CommitRecord] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="index", daemon=True)

    def add(self, commit: CommitRecord) -> None:
        """Take note of a commit, the same one any number of times; costs nothing now."""
        unit_id = commit.manifest.unit_id
        with self._lock:
            if unit_id not in self._known:
                self._known.add(unit_id)
                self._added.append(commit)

    def __enter__(self) -> IndexKeeper:
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._done.set()
        self._thread.join()
        if isinstance(error, AtlasError):
            # The store or the lease is in trouble, and somebody else may know more by now.
            return
        try:
            self._write()
        except AtlasError as trouble:
            self._say(f"The index could not be written, so readers will read commits one by one: {trouble}")

    def _keep(self) -> None:
        pause = _EVERY_S
        while not self._done.wait(pause):
            began = time.monotonic()
            # A store in a bad moment has the same lines written the next time.
            with suppress(AtlasError):
                self._write()
            pause = max(_EVERY_S, (time.monotonic() - began) / _AT_MOST_SHARE)

    def _write(self) -> None:
        with self._lock:
            added, self._added = self._added, []
        if added:
            self._table = in_address_order(pa.concat_tables([self._table, index_lines(self._record, added)]))
            self._chunks = _with_new(self._chunks, added)
        _write_both(self._location, self._record, self._table, self._chunks)


def refresh_index(location: Location, record: RunRecord) -> None:
    """Bring the stored index up to what is committed, where it lags and no driver will.

    Raises:
        StoreError: A commit record is damaged.
        TransientError: The store failed.
    """
    index = load_index(location, record)
    if index.read_one_by_one:
        _write_both(location, record, index.table, _with_new(read_chunks(location), index.read_one_by_one))


def rebuild_index(location: Location, record: RunRecord, commits: Sequence[CommitRecord]) -> None:
    """Write the index anew from every commit, whatever the stored one says.

    Args:
        location: The run's store.
        record: Of the run.
        commits: All of them.

    Raises:
        TransientError: The store failed.
    """
    table = in_address_order(index_lines(record, commits))
    _write_both(location, record, table, chunk_table(commit.manifest for commit in commits))


def _write_both(location: Location, record: RunRecord, table: pa.Table, chunks: pa.Table) -> None:
    # The chunks first: who reads the new index finds the chunks it needs.
    write_chunks(location, chunks)
    write_index(location, record, table)


def _only_of(table: pa.Table, chunks: pa.Table, rows_per_block: int) -> pa.Table:
    """Leave out the lines of row blocks that no line of the index is of."""
    row_blocks = np.unique(table["row"].to_numpy() // rows_per_block)
    return chunks.filter(pc.field("row_block").isin(pa.array(row_blocks, pa.int64())))


def _with_new(chunks: pa.Table, commits: Iterable[CommitRecord]) -> pa.Table:
    """Add the lines of commits whose row block is not in the table."""
    fresh = chunk_table(commit.manifest for commit in commits)
    is_known = pc.field("row_block").isin(chunks["row_block"].combine_chunks())
    return pa.concat_tables([chunks, fresh.filter(~is_known)])
