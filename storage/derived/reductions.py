"""What a reduction found, and its place in the store: a Zarr group that any Zarr reader opens.

A reduction is written under an id of its own, then ``analysis/current.json`` is pointed at it: an older one is never
changed, and a reader never sees half of a new one. Axes: P personas, L layers, D d_model, K components, N rollouts,
Q percentile labels.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from ...jobs.errors import StoreError
from ..format import layout
from ..locations.location import Location

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reduction:
    """Vectors, axis, PCA, projections and thresholds of a run, per layer. Arrays are float32 unless said.

    What cannot be had is None: no axis without default and roles, no PCA with fewer than three roles.
    The axis points toward the Assistant. A projection is the dot product with the unit axis, not centred.

    Attributes:
        reduction_id: Its name in the store.
        layers: Captured layers, 0-based; the L of all arrays.
        role_names: The roles, in the order of ``role_vectors``.
        trait_names: The traits, in the order of ``trait_vectors``.
        facts: What it was made from: units, rollouts, filter, hook point, pooling.
        role_vectors: ``(P, L, D)``, mean over a role's rollouts.
        role_counts: ``(P,)`` int64, rollouts behind each.
        default_vector: ``(L, D)``, mean over the default's rollouts.
        trait_vectors: ``(T, L, D)``, mean(pos) - mean(neg).
        axis: ``(L, D)``, default_vector - mean(role_vectors), not normalised.
        pca_mean: ``(L, D)``, the mean role vector that PCA is centred on.
        pca_components: ``(L, K, D)``, unit length; the first oriented to agree with the axis.
        pca_variance_ratio: ``(L, K)``, share of the variance of the role vectors.
        pc1_axis_cosine: ``(L,)``.
        projections: ``(N, L)``, of every rollout that has a vector.
        projection_rows: ``(N,)`` int64, their rows in the activation arrays.
        threshold_labels: ``p0.01``, ``p0.25`` ...: percentiles of the projection on -axis, as fractions.
        cap_on_minus_axis: ``(Q, L)``, that percentile on -axis: a ceiling for the projection on -axis.
        floor_on_axis: ``(Q, L)``, its negative: a floor for the projection on +axis.

    Example:
        >>> from persona_atlas import reduce
        >>> reduction = reduce("runs/demo", progress=False)
        >>> reduction.role_names, reduction.role_vectors.shape
        (('pirate', 'poet', 'teacher'), (3, 30, 576))
    """

    reduction_id: str
    layers: tuple[int, ...]
    role_names: tuple[str, ...]
    trait_names: tuple[str, ...]
    facts: dict[str, Any]
    role_vectors: Float32 | None = None
    role_counts: npt.NDArray[np.int64] | None = None
    default_vector: Float32 | None = None
    trait_vectors: Float32 | None = None
    axis: Float32 | None = None
    pca_mean: Float32 | None = None
    pca_components: Float32 | None = None
    pca_variance_ratio: Float32 | None = None
    pc1_axis_cosine: Float32 | None = None
    projections: Float32 | None = None
    projection_rows: npt.NDArray[np.int64] | None = None
    threshold_labels: tuple[str, ...] = ()
    cap_on_minus_axis: Float32 | None = None
    floor_on_axis: Float32 | None = None

    def position(self, layer: int) -> int:
        """Place of a layer in the L axis."""
        return self.layers.index(layer)


_TEXTS = ("layers", "role_names", "trait_names", "facts", "threshold_labels")
_ARRAYS = tuple(f.name for f in fields(Reduction) if f.name not in ("reduction_id", *_TEXTS))


def write_reduction(location: Location, reduction: Reduction) -> None:
    """Store a reduction and make it the current one.

    The group is written under a name that nobody else writes; the record that names it is written last, once.
    """
    path = layout.reduction_path(f"{reduction.reduction_id}-{uuid.uuid4().hex[:8]}")
    digests: dict[str, str] = {}
    with location.errors():
        group = zarr.create_group(
            location.zarr(read_only=False),
            path=path,
            attributes={name: _plain(getattr(reduction, name)) for name in _TEXTS},
        )
        for name in _ARRAYS:
            values = getattr(reduction, name)
            if values is not None:
                digests[name] = _digest_of(values)
                # NaN where a chunk is missing, and a checksum in each: a lost or damaged one does not read as numbers.
                fill = float("nan") if values.dtype.kind == "f" else None
                codecs = [BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.shuffle), Crc32cCodec()]
                group.create_array(name, data=values, fill_value=fill, compressors=codecs)
    record = json.dumps({"reduction_id": reduction.reduction_id, "path": path, "arrays": digests}).encode()
    location.create(layout.reduction_record_path(reduction.reduction_id), record)
    make_current(location, reduction.reduction_id)


def make_current(location: Location, reduction_id: str) -> bool:
    """Point at a reduction that is stored already.

    Returns:
        False when there is none of that id.
    """
    record = location.read(layout.reduction_record_path(reduction_id))
    if record is None:
        return False
    if location.read(layout.CURRENT_REDUCTION) != record:
        location.write(layout.CURRENT_REDUCTION, record)
    return True


def current_reduction_id(location: Location) -> str | None:
    """Say which reduction is current, without loading it.

    Raises:
        StoreError: The pointer is damaged.
    """
    pointer = _read_pointer(location)
    return pointer[0] if pointer else None


def read_current_reduction(location: Location) -> Reduction | None:
    """Load the current reduction; None when there is none.

    Raises:
        StoreError: The pointer or the group is damaged.
    """
    pointer = _read_pointer(location)
    if pointer is None:
        return None
    reduction_id, path, digests = pointer
    # Inside: a group that is not there is a missing file to us, and no trouble of the store's.
    with location.errors():
        try:
            group: Any = zarr.open_group(location.zarr(read_only=True), path=path, mode="r")
            texts: dict[str, Any] = {name: group.attrs[name] for name in _TEXTS}
            arrays: dict[str, Any] = {name: np.asarray(group[name][...]) for name in _ARRAYS if name in group}
        except (ValueError, TypeError, KeyError, RuntimeError, FileNotFoundError) as error:
            raise _damaged(location, path, str(error)) from error
    # A chunk that is missing reads as the fill value, an array that is missing as one that could not be had.
    if {name: _digest_of(values) for name, values in arrays.items()} != digests:
        raise _damaged(location, path, "its arrays are not those that were written")
    texts = {name: tuple(value) if isinstance(value, list) else value for name, value in texts.items()}
    return Reduction(reduction_id=reduction_id, **texts, **arrays)


def _digest_of(values: np.ndarray) -> str:
    """SHA-256 over an array's type, shape and numbers."""
    head = f"{values.dtype.str}{values.shape}".encode()
    return sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()


def _read_pointer(location: Location) -> tuple[str, str, dict[str, str]] | None:
    pointer = location.read(layout.CURRENT_REDUCTION)
    if pointer is None:
        return None
    try:
        data = json.loads(pointer)
        return str(data["reduction_id"]), str(data["path"]), dict(data["arrays"])
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(location, layout.CURRENT_REDUCTION, str(error)) from error


def _damaged(location: Location, path: str, reason: str) -> StoreError:
    return StoreError(
        f"the reduction cannot be read: {reason}.",
        code="bad_reduction",
        file=f"{location.url}/{path}",
        hint=f"Delete {layout.ANALYSIS}/ and run reduce again; the activations are not touched.",
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
