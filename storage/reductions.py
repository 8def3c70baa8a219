"""What a reduction found, and its place in the store: a Zarr group that any Zarr reader opens.

A reduction is written under an id of its own, then ``analysis/current.json`` is pointed at it: an older one is never
changed, and a reader never sees half of a new one. Axes: P personas, L layers, D d_model, K components, N rollouts,
Q percentile labels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from ..jobs.errors import StoreError
from . import layout
from .location import Location

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
    """Store a reduction and make it the current one."""
    group = zarr.create_group(
        location.zarr(read_only=False),
        path=layout.reduction_path(reduction.reduction_id),
        attributes={name: _plain(getattr(reduction, name)) for name in _TEXTS},
        overwrite=True,
    )
    for name in _ARRAYS:
        values = getattr(reduction, name)
        if values is not None:
            group.create_array(name, data=values)
    pointer = json.dumps({"reduction_id": reduction.reduction_id}).encode()
    location.write(layout.CURRENT_REDUCTION, pointer)


def read_current_reduction(location: Location) -> Reduction | None:
    """Load the current reduction; None when there is none.

    Raises:
        StoreError: The pointer or the group is damaged.
    """
    pointer = location.read(layout.CURRENT_REDUCTION)
    if pointer is None:
        return None
    url = f"{location.url}/{layout.CURRENT_REDUCTION}"
    try:
        reduction_id = str(json.loads(pointer)["reduction_id"])
        group: Any = zarr.open_group(location.zarr(read_only=True), path=layout.reduction_path(reduction_id), mode="r")
        texts: dict[str, Any] = {name: group.attrs[name] for name in _TEXTS}
        arrays: dict[str, Any] = {name: np.asarray(group[name][...]) for name in _ARRAYS if name in group}
    except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
        raise StoreError(
            f"the reduction cannot be read: {error}.", code="bad_reduction", file=url, mend="Run reduce again."
        ) from error
    texts = {name: tuple(value) if isinstance(value, list) else value for name, value in texts.items()}
    return Reduction(reduction_id=reduction_id, **texts, **arrays)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
