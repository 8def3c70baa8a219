"""Counts, means and squares of each persona's rollouts by group, kept in the store, so that rollouts are read once.

Of a persona whose units are the same as before nothing is read. Of one that has more, only the new units are, and their
sums are merged with those of the old ones (Chan's rule). If a judge's scores put rollouts into other groups, all units
of that persona are read again.
Axes: N rollouts of a unit, G groups, L layers of a part, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...storage.derived.partials import Partial, PartialWriter
from ...storage.format import layout
from ...storage.locations.location import Location
from ...storage.query.reader import ActivationReader
from ..moments import Moments
from .budget import layers_per_read
from .mapping import Mapper
from .rollouts import Group, Persona, UnitRows
from .stored_partials import PartialWork, StoredPartials, store_partial
from .unit_work import ArrayOfRun, UnitKey, UnitLengths, unit_keys

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SumsWork(PartialWork):
    """The sums of one persona that are to be computed.

    Attributes:
        groups: Its groups.
        counts: Number of rollouts in each.
    """

    groups: tuple[Group, ...]
    counts: tuple[int, ...]


def compute_sums(location: Location, work: SumsWork) -> None:
    """Compute the sums of one persona and store them.

    Args:
        location: The store.
        work: The persona.

    Raises:
        StoreError: A committed value is missing or damaged.
    """
    store_partial(location, work, _sums)


def _sums(location: Location, work: SumsWork) -> bytes:
    array, reader = work.to_read.array, work.to_read.reader(location)
    known = {unit for unit, _, _ in unit_keys(work.base)} if work.base is not None else set()
    units = [unit for unit in work.to_read.units if unit.unit_id not in known]
    step = layers_per_read(array.num_layers, array.rows_per_block, array.d_model, len(work.groups))
    writer = PartialWriter()
    for start in range(0, array.num_layers, step):
        stop = min(array.num_layers, start + step)
        sums = GroupSums(len(work.groups), stop - start, array.d_model)
        for unit in units:
            _add_unit(sums, reader, unit, start, stop)
        found = sums.moments()
        if work.base is not None:
            _merge(found, work.groups, groups_of(work.base, location, start, stop))
        for layer in range(stop - start):
            writer.add(
                {
                    "mean": np.stack([moments.mean_LD[layer] for moments in found]),
                    "m2": np.stack([moments.m2_LD[layer] for moments in found]),
                }
            )
    content = {
        "units": [[unit.unit_id, unit.row_block, unit.digest] for unit in work.to_read.units],
        "groups": [[name, half, count] for (name, half), count in zip(work.groups, work.counts, strict=True)],
    }
    return writer.finish(content)


def _add_unit(sums: GroupSums, reader: ActivationReader, unit: UnitRows, start: int, stop: int) -> None:
    """Add a unit at the layers ``start`` to ``stop``; from a layer on at which float32 is too narrow, in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        for first, values_LND in reader.of_unit(unit.row_block, unit.unit_id, unit.rows_N, start, stop):
            if not sums.add(first - start, values_LND, unit.groups_N):
                break
        else:
            return
    for again, values_LND in reader.of_unit(unit.row_block, unit.unit_id, unit.rows_N, first, stop):
        if not sums.add_wide(again - start, values_LND, unit.groups_N):
            raise reader.no_numbers(unit.row_block, unit.unit_id)


def _merge(found: list[Moments], groups: Sequence[Group], earlier: dict[Group, Moments]) -> None:
    for number, group in enumerate(groups):
        if group in earlier:
            found[number] = earlier[group].merge(found[number])


class GroupSums:
    """Sums of rollouts by group at some layers, added part by part.

    Products are taken in float32 of the differences from the first rollout: these are as small as the rollouts' spread,
    so that a long mean costs no digits, and equal rollouts have no variance at all. Sums over units are float64.

    Args:
        num_groups: G.
        num_layers: L.
        d_model: D.
    """

    def __init__(self, num_groups: int, num_layers: int, d_model: int) -> None:
        self._shift_LD = np.zeros((num_layers, d_model), dtype=np.float32)
        self._has_shift = np.zeros(num_layers, dtype=bool)
        self._total_LGD = np.zeros((num_layers, num_groups, d_model))
        self._squares_LGD = np.zeros((num_layers, num_groups, d_model))
        self._counts_G = np.zeros(num_groups, dtype=np.int64)
        self._groups_N: npt.NDArray[np.int64] | None = None
        self._present: slice | npt.NDArray[np.int64] = slice(0, 0)
        self._weights_GN = np.empty((0, 0), dtype=np.float32)

    def add(self, first: int, values_LND: Float32, groups_N: npt.NDArray[np.int64]) -> bool:
        """Add rollouts at adjacent layers, with sums over them in float32.

        Args:
            first: Position of the first layer.
            values_LND: Vectors; overwritten, because a copy would cost as much as the sums.
            groups_N: Number of the group of each rollout; the same array for all layers of these rollouts.

        Returns:
            False, and nothing is added, if a value is not finite or a square is beyond float32; see ``add_wide``.
        """
        layers = slice(first, first + len(values_LND))
        if not self._has_shift[first]:
            if not np.isfinite(values_LND[:, 0]).all():
                return False
            self._shift_LD[layers], self._has_shift[layers] = values_LND[:, 0], True
        if self._groups_N is not groups_N:
            # The same for all parts of a unit.
            self._groups_N, (self._present, self._weights_GN) = groups_N, _weights(groups_N)
        np.subtract(values_LND, self._shift_LD[layers, None], out=values_LND)
        total = self._weights_GN @ values_LND
        squares = self._weights_GN @ np.square(values_LND, out=values_LND)
        if not np.isfinite(squares).all():
            return False
        self._accumulate(layers, total, squares)
        return True

    def add_wide(self, first: int, values_LND: Float32, groups_N: npt.NDArray[np.int64]) -> bool:
        """Add rollouts with sums over them in float64, several times slower.

        Args:
            first: Position of the first layer.
            values_LND: Vectors.
            groups_N: Number of the group of each rollout.

        Returns:
            False, and nothing is added, if a value is not finite.
        """
        layers = slice(first, first + len(values_LND))
        if not np.isfinite(values_LND).all():
            return False
        self._groups_N, (self._present, self._weights_GN) = groups_N, _weights(groups_N)
        if not self._has_shift[first]:
            self._shift_LD[layers], self._has_shift[layers] = values_LND[:, 0], True
        wide_LND = values_LND.astype(np.float64) - self._shift_LD[layers, None]
        self._accumulate(layers, self._weights_GN @ wide_LND, self._weights_GN @ np.square(wide_LND))
        return True

    def _accumulate(self, layers: slice, total_LGD: npt.NDArray[Any], squares_LGD: npt.NDArray[Any]) -> None:
        self._total_LGD[layers, self._present] += total_LGD
        self._squares_LGD[layers, self._present] += squares_LGD
        if layers.start == 0:
            self._counts_G[self._present] += self._weights_GN.sum(axis=1).astype(np.int64)

    def moments(self) -> list[Moments]:
        """Return count, mean and squared deviations of each group."""
        found: list[Moments] = []
        for number, count in enumerate(self._counts_G.tolist()):
            if not count:
                found.append(Moments.empty(*self._shift_LD.shape))
                continue
            total_LD, squares_LD = self._total_LGD[:, number], self._squares_LGD[:, number]
            mean_LD = self._shift_LD + total_LD / count
            # Rounding may leave a little less than nothing.
            found.append(Moments(count, mean_LD, np.maximum(squares_LD - total_LD**2 / count, 0)))
        return found


def _weights(groups_N: npt.NDArray[np.int64]) -> tuple[slice | npt.NDArray[np.int64], Float32]:
    """Return the groups that occur and, for each, 1 for its rollouts and 0 for others."""
    present = np.unique(groups_N)
    weights_GN = (groups_N == present[:, None]).astype(np.float32)
    is_range = present[-1] - present[0] + 1 == len(present)
    return slice(int(present[0]), int(present[-1]) + 1) if is_range else present, weights_GN


def groups_of(partial: Partial, location: Location, start: int, stop: int) -> dict[Group, Moments]:
    """Read the sums of one persona at some layers.

    Args:
        partial: The persona's sums.
        location: The store.
        start: Position of the first layer.
        stop: Position after the last.

    Raises:
        DamagedPartialError: The object is damaged.
    """
    arrays = partial.read(location, start, stop)
    return {
        (str(name), str(half)): Moments(int(count), arrays["mean"][:, number], arrays["m2"][:, number])
        for number, (name, half, count) in enumerate(partial.content["groups"])
    }


@dataclass(frozen=True)
class _Sums:
    """Sums as a kind of partial results; see ``PartialKind``."""

    folder: str = layout.SUMS
    doing: str = "Averaging"
    compute: Callable[[Location, SumsWork], None] = compute_sums

    def name(self, persona: Persona) -> tuple[str, str]:
        return persona.key, persona.digest

    def unit_keys(self, persona: Persona) -> set[UnitKey]:
        return {(unit.unit_id, unit.row_block, unit.digest) for unit in persona.units}

    def num_groups(self, persona: Persona) -> int:
        return len(persona.groups)

    def work(self, persona: Persona, plain: PartialWork) -> SumsWork:
        return SumsWork(plain.to_read, plain.base, plain.path, plain.is_replacement, persona.groups, persona.counts)


class StoredSums(StoredPartials[SumsWork]):
    """The sums of all personas, in the store.

    Args:
        location: The store.
        array: The array that is reduced.
        lengths: Lengths of units.
        mapper: Spreads the work.
        num_cores: Cores that may be used here.
    """

    def __init__(
        self, location: Location, array: ArrayOfRun, lengths: UnitLengths, mapper: Mapper, num_cores: int
    ) -> None:
        super().__init__(location, array, lengths, mapper, num_cores, _Sums())

    def read(self, persona: Persona, start: int, stop: int) -> dict[Group, Moments]:
        """Read the sums of one persona at some layers; damaged ones are computed again.

        Raises:
            StoreError: A committed value is missing or damaged.
        """
        return self.use(persona, lambda partial: groups_of(partial, self._location, start, stop))
