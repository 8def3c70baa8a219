"""Write the index in a thread of its own while a driver works, so that it lags by half a minute or so.

The index is one file, written whole each time. Written after every commit, a run of n units would write n²/2 lines; so
commits are collected, and written every 30 s, less often when writing takes long. In between, every two seconds, the
records of the commits that the index lacks are written as one object (``recent``), so that a reader need not fetch them
one by one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import AtlasError
from ..format.records import CommitRecord, RunRecord
from ..format.rollout_tables import in_address_order, merged_in_address_order
from ..locations.location import Location
from .chunk_index import chunk_table, read_chunks, write_chunks
from .index import index_lines, load_index, write_index
from .recent import forget_recent, write_recent

_EVERY_S = 30.0
_RECENT_EVERY_S = 2.0
_MAX_WRITING_SHARE = 0.05
"""Share of the time that may be spent on writing: the index of a large run takes seconds, and is written less often."""


class IndexKeeper:
    """Collects commits and writes them into the index at intervals. Use as a context manager; the exit writes the rest.

    An index that could not be written costs readers requests and nothing else, so that error goes to ``warn`` and is
    not raised. Lines of units whose commit records were deleted are removed in the constructor, whose errors are
    raised: readers would take those lines for the units' new attempts.

    Args:
        location: The run's store.
        record: The run's record.
        warn: Called with a message when the index could not be written at the end.
        generation: Number of the driver's lease, under which recent commits are written; None: they are not written.

    Raises:
        StoreError: A commit record is damaged.
        TransientError: The store cannot be reached.
    """

    def __init__(
        self,
        location: Location,
        record: RunRecord,
        warn: Callable[[str], None] = lambda _: None,
        generation: int | None = None,
    ) -> None:
        self._location = location
        self._record = record
        self._warn = warn
        self._generation = generation
        if generation is not None:
            forget_recent(location, record, generation)
        index = load_index(location, record, list_commits=True)
        self._table = index.table
        self._known = set(index.committed)
        chunks = _of_indexed_blocks(index.table, read_chunks(location), record.rows_per_block)
        self._chunks = _with_new(chunks, index.missing_commits)
        if index.has_removed_units:
            # Before the unit is committed again. Old and new lines have the same unit id, so a reader of a complete
            # index would take the lines of the deleted attempt, and their rows, for those of the new one.
            _write_both(location, record, self._table, self._chunks)
        self._is_behind = bool(index.missing)
        self._added: list[CommitRecord] = []
        # Those that the stored index lacks, and those that it lacked until it was written last: a reader may have read
        # the index just before that, and reads the recent commits after it.
        self._since_index: list[CommitRecord] = list(index.missing_commits)
        self._before_index: list[CommitRecord] = []
        # Even without any: readers of a large run list nothing once they see that the driver collects them.
        self._has_new = True
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write_loop, name="index", daemon=True)

    def add(self, commit: CommitRecord) -> None:
        """Add a commit to the next write; a unit that the index has already is ignored."""
        unit_id = commit.manifest.unit_id
        with self._lock:
            if unit_id not in self._known:
                self._known.add(unit_id)
                self._added.append(commit)
                self._since_index.append(commit)
                self._has_new = True

    def __enter__(self) -> IndexKeeper:
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._done.set()
        self._thread.join()
        if isinstance(error, AtlasError):
            # The lease may be lost, and another driver's index ahead of this one. Writing now would make it lag again.
            return
        try:
            self._write()
        except AtlasError as write_error:
            self._warn(
                f"The index could not be written; readers will read its commit records one by one: {write_error}"
            )

    def _write_loop(self) -> None:
        next_index_s = time.monotonic() + (0 if self._is_behind else _EVERY_S)
        pause_s = min(_RECENT_EVERY_S, _EVERY_S)
        while not self._done.wait(pause_s):
            pause_s = min(_RECENT_EVERY_S, _EVERY_S)
            began_s = time.monotonic()
            # After an error the added lines stay in the table, and the next write includes them.
            with suppress(AtlasError):
                if began_s < next_index_s:
                    self._write_recent()
                    pause_s = max(pause_s, (time.monotonic() - began_s) / _MAX_WRITING_SHARE)
                    continue
                self._write()
            next_index_s = time.monotonic() + max(_EVERY_S, (time.monotonic() - began_s) / _MAX_WRITING_SHARE)

    def _write(self) -> None:
        with self._lock:
            added, self._added = self._added, []
            num_since = len(self._since_index)
        if added:
            self._table = merged_in_address_order(self._table, index_lines(self._record, added))
            self._chunks = _with_new(self._chunks, added)
        _write_both(self._location, self._record, self._table, self._chunks)
        with self._lock:
            self._before_index = self._since_index[:num_since]
            del self._since_index[:num_since]

    def _write_recent(self) -> None:
        if self._generation is None or not self._has_new:
            return
        with self._lock:
            commits = [*self._before_index, *self._since_index]
            self._has_new = False
        try:
            write_recent(self._location, self._record, self._generation, commits)
        except AtlasError:
            self._has_new = True
            raise


def refresh_index(location: Location, record: RunRecord) -> None:
    """Add missing commits to the stored index, of a run that no driver works on.

    Args:
        location: The run's store.
        record: The run's record.

    Raises:
        StoreError: A commit record is damaged.
        TransientError: The store cannot be reached.
    """
    index = load_index(location, record)
    if index.missing:
        _write_both(location, record, index.table, _with_new(read_chunks(location), index.missing_commits))


def rebuild_index(location: Location, record: RunRecord, commits: Sequence[CommitRecord]) -> None:
    """Write the index from the commit records alone, and replace whatever is stored.

    Args:
        location: The run's store.
        record: The run's record.
        commits: Every commit record of the run.

    Raises:
        TransientError: The store cannot be reached.
    """
    table = in_address_order(index_lines(record, commits))
    _write_both(location, record, table, chunk_table(commit.manifest for commit in commits))


def _write_both(location: Location, record: RunRecord, table: pa.Table, chunks: pa.Table) -> None:
    # The chunk lengths first: a reader that sees the new index then finds the lengths of its units.
    write_chunks(location, chunks)
    write_index(location, record, table)


def _of_indexed_blocks(table: pa.Table, chunks: pa.Table, rows_per_block: int) -> pa.Table:
    """Keep the chunk lengths of row blocks that the index names."""
    row_blocks = np.unique(table["row"].to_numpy() // rows_per_block)
    return chunks.filter(pc.field("row_block").isin(pa.array(row_blocks, pa.int64())))


def _with_new(chunks: pa.Table, commits: Iterable[CommitRecord]) -> pa.Table:
    """Add the chunk lengths of commits whose row block is not in the table yet."""
    fresh = chunk_table(commit.manifest for commit in commits)
    is_known = pc.field("row_block").isin(chunks["row_block"].combine_chunks())
    return pa.concat_tables([chunks, fresh.filter(~is_known)])
