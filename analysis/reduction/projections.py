"""Projections of every rollout on an axis, kept in the store, so that rollouts are read once per axis.

A new rollout of the default or of a role that counts changes the axis, and then every rollout is projected again. One
of a trait, or of a role whose score does not count, changes nothing but its own persona.
While a role's rollouts are read, their spread along the principal components of the role vectors is taken too.
Axes: N rollouts, R rows of a block, L layers, D d_model, P pieces of it, K components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from ...storage.derived.partials import Partial, PartialWriter
from ...storage.format import layout
from ...storage.locations.location import Location
from .budget import layers_per_read
from .cast import Cast
from .mapping import Mapper
from .rollouts import Persona, UnitRows
from .stored_partials import PARALLEL_READS, PartialWork, StoredPartials, store_partial
from .unit_work import ArrayOfRun, UnitKey, UnitLengths, unit_keys

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_PIECE = 1024
"""Coordinates whose products are summed in float32; the sums of pieces are float64."""


@dataclass(frozen=True, eq=False)
class ProjectionWork(PartialWork):
    """The projections of one persona that are to be computed.

    Attributes:
        group: Path of the group that has ``axis`` and ``pca_components``.
        with_spread: Whether the spread along the components is taken.
    """

    group: str
    with_spread: bool


def axis_digest(cast: Cast) -> str:
    """Digest of what axis and components are made of: which rollouts of the default and of each role count.

    Not of their values, which depend on the machine in the last digits.
    """
    assert cast.default is not None
    parts = [f"default {cast.default.rows_digest}"]
    parts += [f"{role.name} {role.members_digest(cast.counted)}" for role in cast.roles]
    return sha256("\n".join(parts).encode()).hexdigest()[:16]


def compute_projections(location: Location, work: ProjectionWork) -> None:
    """Project the rollouts of one persona and store the result.

    Args:
        location: The store.
        work: The persona.

    Raises:
        StoreError: A committed value is missing or damaged.
    """
    store_partial(location, work, _projections)


def _projections(location: Location, work: ProjectionWork) -> bytes:
    array, reader = work.to_read.array, work.to_read.reader(location)
    known = unit_keys(work.base) if work.base is not None else set()
    units = work.to_read.units
    new = [unit for unit in units if _key(unit) not in known]
    step = layers_per_read(array.num_layers, array.rows_per_block, array.d_model, 0)
    writer, part_LRD = PartialWriter(), reader.part_buffer(step)
    for start in range(0, array.num_layers, step):
        stop = min(array.num_layers, start + step)
        weights = _weights(location, work.group, start, stop)
        earlier = work.base.read(location, start, stop) if work.base is not None else None
        pieces = _pieces(earlier, work.base)
        spread = Spread(stop - start, weights.components_LDK.shape[2] if work.with_spread else 0)
        if earlier is not None and work.base is not None:
            count = sum(len(piece) for piece in pieces.values())
            spread.merge(count, earlier["along_mean"], earlier["along_m2"])
        for unit in new:
            pieces[_key(unit)] = np.empty((len(unit.rows_N), stop - start), dtype=np.float32)
            for first, values_LRD in reader.of_unit(unit.row_block, unit.unit_id, start, stop, part_LRD):
                at = slice(first - start, first - start + len(values_LRD))
                # Not in one product with the components: with other columns beside it, it is rounded in another way.
                along_LN = along(values_LRD, weights.axis_LD1[at])[:, unit.rows_N, 0]
                # A product may be beyond float32, and is NaN where there is no axis; a committed value is a number.
                if not np.isfinite(along_LN).all() and not np.isfinite(values_LRD[:, unit.rows_N]).all():
                    raise reader.no_numbers(unit.row_block, unit.unit_id)
                pieces[_key(unit)][:, at] = along_LN.T
                if work.with_spread:
                    spread.add(first - start, along(values_LRD, weights.components_LDK[at])[:, unit.rows_N])
        whole_NL = np.concatenate([pieces[_key(unit)] for unit in units])
        for layer in range(stop - start):
            writer.add({"projection": whole_NL[:, layer]} | spread.at(layer))
    content = {"units": [[unit.unit_id, unit.row_block, unit.rows_digest, len(unit.rows_N)] for unit in units]}
    return writer.finish(content)


def _key(unit: UnitRows) -> UnitKey:
    return unit.unit_id, unit.row_block, unit.rows_digest


def _pieces(earlier: dict[str, Any] | None, base: Partial | None) -> dict[UnitKey, Float32]:
    """Take the projections of a base apart, unit by unit."""
    found: dict[UnitKey, Float32] = {}
    if earlier is None or base is None:
        return found
    end = 0
    for unit_id, block, digest, count in base.content["units"]:
        begin, end = end, end + int(count)
        found[str(unit_id), int(block), str(digest)] = earlier["projection"][:, begin:end].T
    return found


def along(values_LRD: Float32, weights_LDK: Float32) -> Float32:
    """Multiply vectors with the columns of a matrix, layer by layer.

    Args:
        values_LRD: Vectors; a sum beyond float32 is infinite.
        weights_LDK: One matrix for each layer.

    Returns:
        float32 ``(L, R, K)``: float32 sums over pieces of 1,024 coordinates, added in float64.

    Example:
        >>> along(np.ones((1, 2, 1500), np.float32), np.ones((1, 1500, 1), np.float32)).ravel()
        array([1500., 1500.], dtype=float32)
    """
    num_layers, num_rows, d_model = values_LRD.shape
    with np.errstate(over="ignore", invalid="ignore"):
        if d_model <= _PIECE:
            return values_LRD @ weights_LDK
        rest = d_model % _PIECE
        pieces_LPRD = values_LRD[..., : d_model - rest].reshape(num_layers, num_rows, -1, _PIECE).swapaxes(1, 2)
        weights_LPDK = weights_LDK[:, : d_model - rest].reshape(num_layers, -1, _PIECE, weights_LDK.shape[2])
        total_LRK = (pieces_LPRD @ weights_LPDK).sum(axis=1, dtype=np.float64)
        if rest:
            total_LRK += values_LRD[..., d_model - rest :] @ weights_LDK[:, d_model - rest :]
        return total_LRK.astype(np.float32)


class Spread:
    """Mean and squared deviations of a persona's rollouts along components, at some layers.

    Args:
        num_layers: L.
        num_components: K; 0 where no spread is taken.
    """

    def __init__(self, num_layers: int, num_components: int) -> None:
        self._counts_L = np.zeros(num_layers, dtype=np.int64)
        self._mean_LK = np.zeros((num_layers, num_components))
        self._m2_LK = np.zeros((num_layers, num_components))

    def merge(self, count: int, mean_LK: Float64, m2_LK: Float64, first: int = 0) -> None:
        """Add rollouts by their number, mean and squared deviations, by Chan's rule."""
        at = slice(first, first + len(mean_LK))
        before = int(self._counts_L[first])
        difference_LK = mean_LK - self._mean_LK[at]
        self._m2_LK[at] += m2_LK + difference_LK**2 * (before * count / (before + count))
        self._mean_LK[at] += difference_LK * (count / (before + count))
        self._counts_L[at] = before + count

    def add(self, first: int, along_LNK: Float32) -> None:
        """Add rollouts at adjacent layers, the first of which is at position ``first``."""
        wide_LNK = along_LNK.astype(np.float64)
        # Beyond float32: NaN, which stays where it is, and not an infinity.
        wide_LNK[np.isinf(wide_LNK)] = np.nan
        mean_LK = wide_LNK.mean(axis=1)
        wide_LNK -= mean_LK[:, None]
        self.merge(wide_LNK.shape[1], mean_LK, np.einsum("lnk,lnk->lk", wide_LNK, wide_LNK), first)

    def at(self, layer: int) -> dict[str, Float64]:
        """Return mean and squared deviations at one layer."""
        return {"along_mean": self._mean_LK[layer], "along_m2": self._m2_LK[layer]}


@dataclass(frozen=True, eq=False)
class _Weights:
    """What vectors are multiplied with: the axis of unit length ``(L, D, 1)``, and the components ``(L, D, K)``."""

    axis_LD1: Float32
    components_LDK: Float32


_LOADING = Lock()


def _weights(location: Location, group: str, start: int, stop: int) -> _Weights:
    """Read axis and components, once for all threads."""
    with _LOADING:
        return _load_weights(_ByUrl(location.url, location), group, start, stop)


class _ByUrl:
    """A location as a key of a cache: two of one URL are the same."""

    def __init__(self, url: str, location: Location) -> None:
        self.url, self.location = url, location

    def __hash__(self) -> int:
        return hash(self.url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByUrl) and other.url == self.url


@lru_cache(maxsize=1)
def _load_weights(key: _ByUrl, group: str, start: int, stop: int) -> _Weights:
    with key.location.errors():
        opened: Any = zarr.open_group(key.location.zarr(read_only=True), path=group, mode="r")
        axis_LD = np.asarray(opened["axis"][start:stop], dtype=np.float64)
        components_LKD = np.zeros((stop - start, 0, axis_LD.shape[1]), dtype=np.float32)
        if "pca_components" in opened:
            components_LKD = np.asarray(opened["pca_components"][start:stop], dtype=np.float32)
    unit_LD = axis_LD / np.linalg.norm(axis_LD, axis=1, keepdims=True)
    # Contiguous along K, which the product needs to be fast. A component without variance is NaN: so is its spread.
    components_LDK = np.ascontiguousarray(components_LKD.transpose(0, 2, 1))
    return _Weights(unit_LD.astype(np.float32)[..., None], components_LDK)


@dataclass(frozen=True)
class _Projections:
    """Projections as a kind of partial results; see ``PartialKind``.

    Attributes:
        axis: Digest of what the axis is made of.
        group: Path of the group that has ``axis`` and ``pca_components``.
    """

    axis: str
    group: str
    folder: str = layout.PROJECTIONS
    doing: str = "Projecting"
    compute: Callable[[Location, ProjectionWork], None] = compute_projections

    def name(self, persona: Persona) -> tuple[str, str]:
        return f"{persona.key}-{self.axis}", persona.rows_digest

    def unit_keys(self, persona: Persona) -> set[UnitKey]:
        return {_key(unit) for unit in persona.units}

    def num_groups(self, persona: Persona) -> int:
        return 0

    def work(self, persona: Persona, plain: PartialWork) -> ProjectionWork:
        with_spread = persona.kind == "role"
        return ProjectionWork(plain.to_read, plain.base, plain.path, plain.is_replacement, self.group, with_spread)


class StoredProjections(StoredPartials[ProjectionWork]):
    """The projections of all personas, in the store.

    Args:
        location: The store.
        array: The array that is reduced.
        lengths: Lengths of units.
        mapper: Spreads the work.
        num_cores: Cores that may be used here.
        digest: Digest of what the axis is made of.
        group: Path of the group that has ``axis`` and ``pca_components``.
    """

    def __init__(
        self,
        location: Location,
        array: ArrayOfRun,
        lengths: UnitLengths,
        mapper: Mapper,
        num_cores: int,
        digest: str,
        group: str,
    ) -> None:
        super().__init__(location, array, lengths, mapper, num_cores, _Projections(digest, group))

    def read(self, personas: Sequence[Persona], start: int, stop: int) -> tuple[Float32, list[dict[str, Float64]]]:
        """Read projections at some layers; damaged ones are computed again.

        Args:
            personas: Everybody.
            start: Position of the first layer.
            stop: Position after the last.

        Returns:
            ``(N, L)`` in the order of the personas, and of each persona the mean and squared deviations along the
            components, ``(L, K)``.

        Raises:
            StoreError: A committed value is missing or damaged.
        """
        count = sum(persona.count for persona in personas)
        projections_NL = np.empty((count, stop - start), dtype=np.float32)
        along: list[dict[str, Float64]] = []

        def read(persona: Persona) -> dict[str, npt.NDArray[Any]]:
            return self.use(persona, lambda partial: partial.read(self._location, start, stop))

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            for persona, arrays in zip(personas, pool.map(read, personas), strict=True):
                projections_NL[persona.first + persona.places] = arrays["projection"].T
                along.append({"mean": arrays["along_mean"], "m2": arrays["along_m2"]})
        return projections_NL, along
