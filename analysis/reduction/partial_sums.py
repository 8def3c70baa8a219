"""Counts, means and squares of each persona's rollouts by group, kept in the store, so that rollouts are read once.

Of a persona whose units are the same as before nothing is read. Of one that has more, only the new units are, and their
sums are merged with those of the old ones (Chan's rule). If a judge's scores put rollouts into other groups, all units
of that persona are read again.
Axes: N rollouts of a unit, R rows of its block, G groups, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...storage.derived.partials import Partial, PartialWriter
from ...storage.format import layout
from ...storage.locations.location import Location
from ...storage.query.reader import ActivationReader
from ..moments import Moments
from .budget import layers_per_read
from .group_sums import GroupSums, membership
from .mapping import Mapper
from .rollouts import Group, Persona
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
    step = layers_per_read(array.num_layers, array.rows_per_block, array.d_model, len(work.groups))
    writer, part_LRD = PartialWriter(), reader.part_buffer(step)
    for start in range(0, array.num_layers, step):
        layers = range(start, min(array.num_layers, start + step))
        _add_layers(writer, *_at_layers(location, work, reader, layers, part_LRD))
    content = {
        "units": [[unit.unit_id, unit.row_block, unit.digest] for unit in work.to_read.units],
        "groups": [[name, half, count] for (name, half), count in zip(work.groups, work.counts, strict=True)],
    }
    return writer.finish(content)


def _add_layers(writer: PartialWriter, mean_LGD: Float64, m2_LGD: Float64) -> None:
    # A function, so that nothing refers to these arrays when those of the next layers are made.
    for mean_GD, m2_GD in zip(mean_LGD, m2_LGD, strict=True):
        writer.add({"mean": mean_GD, "m2": m2_GD})


def _at_layers(
    location: Location, work: SumsWork, reader: ActivationReader, layers: range, part_LRD: Float32
) -> tuple[Float64, Float64]:
    """Return means and squared deviations at some layers, ``(L, G, D)``, merged with those of the base."""
    known = {unit for unit, _, _ in unit_keys(work.base)} if work.base is not None else set()
    sums = GroupSums(len(work.groups), len(layers), work.to_read.array.d_model)
    for unit in work.to_read.units:
        if unit.unit_id in known:
            continue
        groups = membership(unit.rows_N, unit.groups_N, len(work.groups))
        parts = reader.of_unit(unit.row_block, unit.unit_id, layers.start, layers.stop, part_LRD)
        for first, values_LRD in parts:
            if not sums.add(first - layers.start, values_LRD, groups):
                raise reader.no_numbers(unit.row_block, unit.unit_id)
    counts_G, mean_LGD, m2_LGD = sums.finish()
    if work.base is not None:
        earlier = groups_of(work.base, location, layers.start, layers.stop)
        for number, group in enumerate(work.groups):
            if group in earlier:
                new = Moments(int(counts_G[number]), mean_LGD[:, number], m2_LGD[:, number])
                merged = earlier[group].merge(new)
                mean_LGD[:, number], m2_LGD[:, number] = merged.mean_LD, merged.m2_LD
    return mean_LGD, m2_LGD


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
