"""Units of one persona that are to be read, as a value that another process can be given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
import numpy.typing as npt

from ...storage.arrays.geometry import geometry_of
from ...storage.derived.partials import DamagedPartialError, Partial, open_partial
from ...storage.format.records import RunRecord
from ...storage.locations.location import Location
from ...storage.query.reader import ActivationReader
from ...storage.query.run import Run
from ...storage.run.chunk_index import ChunkLengths
from .rollouts import Persona, UnitRows

UnitKey = tuple[str, int, str]
"""Id of a unit, its row block, and a digest of which of its rows count and how."""

MAX_BASES = 4
"""Earlier partial results of a persona that are looked at; those of the current reduction come first."""


@dataclass(frozen=True, eq=False)
class ArrayOfRun:
    """One activation array of a run.

    Attributes:
        record: The run's record.
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
    """

    record: RunRecord
    hook_point: str
    pooling: str

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.record.layers)

    @property
    def d_model(self) -> int:
        """D."""
        return self.record.model.d_model

    @property
    def rows_per_block(self) -> int:
        """Rows of a unit, at most."""
        return geometry_of(self.record, self.pooling).rows_per_block


@dataclass(frozen=True, eq=False)
class UnitsToRead:
    """The units of one persona, with the byte lengths of their layers.

    Attributes:
        array: The array that is read.
        units: The units.
        lengths: For each unit int64 ``(L, 1)``, in bytes.
    """

    array: ArrayOfRun
    units: tuple[UnitRows, ...]
    lengths: tuple[npt.NDArray[np.int64], ...]

    def reader(self, location: Location) -> ActivationReader:
        """Make a reader that knows the lengths.

        Args:
            location: The store.
        """
        known = ChunkLengths(location, self.array.hook_point, self.array.pooling, self.array.num_layers)
        for unit, lengths_LC in zip(self.units, self.lengths, strict=True):
            known.add(unit.row_block, lengths_LC)
        return ActivationReader(location, self.array.record, self.array.hook_point, self.array.pooling, known)


class UnitLengths:
    """Looks up the byte lengths of units, for those that are to be read only.

    Args:
        run: The run.
        array: The array.
    """

    def __init__(self, run: Run, array: ArrayOfRun) -> None:
        self._run = run
        self._array = array
        # Otherwise every thread would look up what one lookup fetches for all.
        self._lock = Lock()

    @cached_property
    def _lengths(self) -> ChunkLengths:
        return self._run.lengths(self._array.hook_point, self._array.pooling)

    def to_read(self, units: Sequence[UnitRows]) -> UnitsToRead:
        """Return units with their lengths.

        Raises:
            StoreError: A commit record is missing or damaged.
        """
        with self._lock:
            found = self._lengths.lengths_of([unit.row_block for unit in units], [unit.unit_id for unit in units])
        return UnitsToRead(self._array, tuple(units), tuple(found))


def find_base(
    location: Location, folder: str, names: Sequence[str], wanted: set[UnitKey], in_use: set[str]
) -> Partial | None:
    """Find the earlier partial result that covers the most of some units and nothing else; None if there is none.

    Args:
        location: The store.
        folder: Folder of the partial results.
        names: Names of those of the persona.
        wanted: Unit, row block and digest of each unit.
        in_use: Paths that the current reduction was made of.
    """
    paths = sorted((f"{folder}/{name}" for name in names), key=lambda path: (path not in in_use, path))
    best: Partial | None = None
    for path in paths[:MAX_BASES]:
        try:
            found = open_partial(location, path)
        except DamagedPartialError:
            continue
        if unit_keys(found) <= wanted and (best is None or len(unit_keys(found)) > len(unit_keys(best))):
            best = found
    return best


def unit_keys(partial: Partial) -> set[UnitKey]:
    """Return unit, row block and digest of each unit that a partial result was made of."""
    return {(str(unit), int(block), str(digest)) for unit, block, digest, *_ in partial.content["units"]}


def is_whole(location: Location, path: str, persona: Persona) -> bool:
    """Whether the header of a partial result can be read; what is behind it is checked when it is used."""
    try:
        found = open_partial(location, path)
    except DamagedPartialError:
        return False
    return len(found.content["units"]) == len(persona.units)


def is_remote(location: Location) -> bool:
    """Whether a store answers over a network, so that reading is mostly waiting."""
    return "://" in location.url
