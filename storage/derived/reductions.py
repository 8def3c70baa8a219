"""Reductions of a run (vectors, axis, PCA, projections, thresholds), each stored as a Zarr group.

A reduction is written to a group with a unique path, then its record is created, then ``analysis/current.json`` is
replaced by a copy of the record. So an existing reduction is never changed, and readers never see part of a new one.
Axes: G personas by polarity, P roles and T traits with a vector, A all traits, L layers, D d_model, K components that are
kept, M all components, N rollouts, Q percentile labels.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from ...jobs.errors import InputError, StoreError
from ..format import layout
from ..locations.location import Location

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reduction:
    """Vectors, axis, PCA, projections and thresholds of a run, per layer. Arrays are float32 unless stated otherwise.

    An array is None where it is undefined: the axis needs the default and a role, PCA at least three roles. At a layer
    where the vectors are all the same there is no axis, or there are no components; ``undefined`` names these layers,
    and there the arrays that follow from them are NaN. The axis points toward the Assistant. A projection is the dot
    product with the axis normalised to unit length, not centred.

    Attributes:
        reduction_id: Id of the reduction, a hash of its inputs.
        layers: Layers along the L axis of all arrays, 0-based.
        role_names: Names of the roles, in the order of ``role_vectors``.
        trait_names: Names of the traits, in the order of ``trait_vectors``.
        facts: What the reduction was computed from: units, rollouts, filter, hook point, pooling. Also, where there are
            such, ``undefined`` (see the method) and ``without_vector``: by kind, the personas of which every response
            was empty.
        personas: Kind, name and polarity of every persona with a vector, in the order of ``mean`` (axis G).
        mean: ``(G, L, D)``, mean over all rollouts of each persona that have a vector, whatever their scores.
        variance: ``(G, L, D)``, their variance (n - 1) about it; NaN where there is one rollout.
        count: ``(G,)`` int64, their number.
        mean_fully: ``(G, L, D)``, mean over those that a judge scored 3; NaN where there is none. Roles only.
        count_fully: ``(G,)`` int64.
        mean_somewhat: ``(G, L, D)``, mean over those that a judge scored 2; NaN where there is none. Roles only.
        count_somewhat: ``(G,)`` int64.
        role_vectors: ``(P, L, D)``, the role vectors that the axis is made of: means over the rollouts that count by
            ``facts["role_filter"]``, of roles with at least ``facts["min_count"]`` of them.
        role_counts: ``(P,)`` int64, number of rollouts behind each.
        default_vector: ``(L, D)``, mean over the rollouts of the default persona, which are never filtered.
        trait_vectors: ``(T, L, D)``, of the kind ``facts["trait_kind"]``: ``pos_neg_50`` with a judge, else ``pos_neg``.
        trait_counts: ``(T,)`` int64, number of pairs, or of rollouts with the trait, behind each.
        trait_vectors_pos_neg: ``(A, L, D)``, of every trait (``facts["all_traits"]``): mean of the trait shown minus mean
            of its opposite, no filter. NaN where there is none; the same for the next three.
        trait_vectors_pos_neg_50: ``(A, L, D)``, over pairs of one prompt, question and sample whose scores differ by more
            than 50.
        trait_vectors_pos_default: ``(A, L, D)``, mean of the trait shown minus ``default_vector``.
        trait_vectors_pos_70: ``(A, L, D)``, mean over rollouts of the trait shown that are scored 70 or more.
        trait_counts_pos_neg: ``(A,)`` int64, rollouts of the trait shown; of the other kinds likewise, pairs for
            ``pos_neg_50``.
        trait_counts_pos_neg_50: ``(A,)`` int64.
        trait_counts_pos_default: ``(A,)`` int64.
        trait_counts_pos_70: ``(A,)`` int64.
        axis: ``(L, D)``, ``default_vector`` minus the mean of ``role_vectors``, not normalised.
        axis_split_half: ``(L,)``, cosine between the axes of the questions with even and with odd index.
        axis_interval: ``(2, L)``, 2.5th and 97.5th percentile, over bootstrap samples of the roles, of the cosine between
            the axis of the sample and ``axis``.
        role_projection: ``(P, L)``, projection of each role vector on the axis.
        role_projection_interval: ``(2, P, L)``, 95 % interval of it, by a bootstrap over questions.
        default_projection: ``(L,)``, projection of ``default_vector``.
        default_projection_interval: ``(2, L)``, 95 % interval of it, by a bootstrap over questions.
        role_axis_cosine: ``(P, L)``, cosine of each role vector, centred on the mean of ``role_vectors``, with the axis.
        trait_axis_cosine: ``(T, L)``, cosine of each trait vector with the axis.
        pca_mean: ``(L, D)``, mean of ``role_vectors``, which PCA centres on.
        pca_components: ``(L, K, D)``, unit length; the sign of the first agrees with the axis. At most 32 are kept.
        pca_variance_ratio: ``(L, M)``, fraction of the variance of ``role_vectors``, 0 to 1, of all components.
        pca_default_distance: ``(L, K)``, distance of the default from the nearer end of the roles along each component,
            as a fraction of the roles' range; 0 at an end, negative inside.
        pca_rollout_variance: ``(L, K)``, fraction of the variance of single rollouts of roles along each component.
        pc1_axis_cosine: ``(L,)``, cosine between the first component and the axis.
        pc1_axis_cosine_interval: ``(2, L)``, 95 % interval of its absolute value, by a bootstrap over roles.
        pca_z_scale: ``(L, D)``, standard deviation of ``role_vectors``, which the z-scored PCA divides by.
        pca_z_components: ``(L, K, D)``, components of the z-scored role vectors, in z-scores.
        pca_z_variance_ratio: ``(L, M)``.
        pc1_z_axis_cosine: ``(L,)``, cosine between the first of them and the axis divided by the scale.
        trait_pca_mean: ``(L, D)``, mean of ``trait_vectors``.
        trait_pca_components: ``(L, K, D)``.
        trait_pca_variance_ratio: ``(L, M)``.
        projections: ``(N, L)``, projection of every rollout that has a vector.
        projection_rows: ``(N,)`` int64, rows of those rollouts in the activation arrays.
        threshold_labels: ``p0.01``, ``p0.25`` and so on: percentiles of the projection on -axis, as fractions.
        cap_on_minus_axis: ``(Q, L)``, those percentiles: upper bounds for the projection on -axis.
        floor_on_axis: ``(Q, L)``, their negatives: lower bounds for the projection on +axis.

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
    mean: Float32 | None = None
    variance: Float32 | None = None
    count: npt.NDArray[np.int64] | None = None
    mean_fully: Float32 | None = None
    count_fully: npt.NDArray[np.int64] | None = None
    mean_somewhat: Float32 | None = None
    count_somewhat: npt.NDArray[np.int64] | None = None
    role_vectors: Float32 | None = None
    role_counts: npt.NDArray[np.int64] | None = None
    default_vector: Float32 | None = None
    trait_vectors: Float32 | None = None
    trait_counts: npt.NDArray[np.int64] | None = None
    trait_vectors_pos_neg: Float32 | None = None
    trait_vectors_pos_neg_50: Float32 | None = None
    trait_vectors_pos_default: Float32 | None = None
    trait_vectors_pos_70: Float32 | None = None
    trait_counts_pos_neg: npt.NDArray[np.int64] | None = None
    trait_counts_pos_neg_50: npt.NDArray[np.int64] | None = None
    trait_counts_pos_default: npt.NDArray[np.int64] | None = None
    trait_counts_pos_70: npt.NDArray[np.int64] | None = None
    axis: Float32 | None = None
    axis_split_half: Float32 | None = None
    axis_interval: Float32 | None = None
    role_projection: Float32 | None = None
    role_projection_interval: Float32 | None = None
    default_projection: Float32 | None = None
    default_projection_interval: Float32 | None = None
    role_axis_cosine: Float32 | None = None
    trait_axis_cosine: Float32 | None = None
    pca_mean: Float32 | None = None
    pca_components: Float32 | None = None
    pca_variance_ratio: Float32 | None = None
    pca_default_distance: Float32 | None = None
    pca_rollout_variance: Float32 | None = None
    pc1_axis_cosine: Float32 | None = None
    pc1_axis_cosine_interval: Float32 | None = None
    pca_z_scale: Float32 | None = None
    pca_z_components: Float32 | None = None
    pca_z_variance_ratio: Float32 | None = None
    pc1_z_axis_cosine: Float32 | None = None
    trait_pca_mean: Float32 | None = None
    trait_pca_components: Float32 | None = None
    trait_pca_variance_ratio: Float32 | None = None
    projections: Float32 | None = None
    projection_rows: npt.NDArray[np.int64] | None = None
    threshold_labels: tuple[str, ...] = ()
    personas: tuple[tuple[str, str, str], ...] = ()
    cap_on_minus_axis: Float32 | None = None
    floor_on_axis: Float32 | None = None

    def position(self, layer: int) -> int:
        """Return a layer's index along the L axis.

        Raises:
            ValueError: The layer was not captured.
        """
        return self.layers.index(layer)

    def undefined(self, what: Literal["axis", "pca"]) -> dict[int, str]:
        """Return the layers without an axis, or without components, each with the reason; empty for most runs.

        Args:
            what: ``axis``: ``axis``, projections and thresholds are NaN there. ``pca``: components and their shares
                are. ``pc1_axis_cosine`` is NaN where either is undefined.
        """
        reasons = self.facts.get("undefined", {}).get(what, {})
        return {int(layer): str(reason) for layer, reason in reasons.items()}

    @property
    def without_vector(self) -> dict[str, list[str]]:
        """By kind, the names of the personas of which every response was empty, so that they have no vector."""
        return dict(self.facts.get("without_vector", {}))

    def axis_at(self, layer: int) -> Float32:
        """Return the axis at one layer, ``(D,)``.

        Args:
            layer: 0-based layer.

        Raises:
            InputError: The layer was not captured, the run has no axis, or it is undefined at this layer.
        """
        if layer not in self.layers:
            message = f"layer {layer} is not in the reduction, which has {self.layers[0]} to {self.layers[-1]}."
        elif self.axis is None:
            message = "the run has no axis: it needs rollouts of the default Assistant and of a role."
        elif layer in self.undefined("axis"):
            message = f"there is no axis at layer {layer}: {self.undefined('axis')[layer]}."
        else:
            return self.axis[self.position(layer)]
        raise InputError(message, code="no_axis", field="layer", hint="Choose another layer.")


_TEXTS = ("layers", "role_names", "trait_names", "facts", "threshold_labels", "personas")
_LATER_TEXTS = ("personas",)
"""Texts that reductions of earlier versions lack."""
_ARRAYS = tuple(f.name for f in fields(Reduction) if f.name not in ("reduction_id", *_TEXTS))


def write_reduction(location: Location, reduction: Reduction) -> None:
    """Store a reduction and make it the current one.

    Args:
        location: The run's store.
        reduction: The reduction.

    Raises:
        AtlasError: The store cannot be reached or written.
    """
    # A random part in the path: two processes that compute the same reduction do not write into one group. The record
    # is created conditionally, so the first complete group of an id is the one that counts.
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
                # A lost chunk reads as the fill value, so that is NaN; a damaged one fails its crc32c.
                fill = float("nan") if values.dtype.kind == "f" else None
                codecs = [BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.shuffle), Crc32cCodec()]
                group.create_array(name, data=values, fill_value=fill, compressors=codecs)
    record = json.dumps({"reduction_id": reduction.reduction_id, "path": path, "arrays": digests}).encode()
    location.create(layout.reduction_record_path(reduction.reduction_id), record)
    make_current(location, reduction.reduction_id)


def make_current(location: Location, reduction_id: str) -> bool:
    """Make a stored reduction the current one.

    Returns:
        Whether there is a complete reduction of that id.
    """
    record = location.read(layout.reduction_record_path(reduction_id))
    if record is None:
        return False
    if location.read(layout.CURRENT_REDUCTION) != record:
        location.write(layout.CURRENT_REDUCTION, record)
    return True


def current_reduction_id(location: Location) -> str | None:
    """Return the id of the current reduction without loading it; None when there is none.

    Raises:
        StoreError: ``analysis/current.json`` is damaged.
    """
    pointer = _read_pointer(location)
    return pointer[0] if pointer else None


def read_current_reduction(location: Location) -> Reduction | None:
    """Load the current reduction; None when there is none.

    Raises:
        StoreError: ``analysis/current.json`` or the group is damaged.
    """
    pointer = _read_pointer(location)
    if pointer is None:
        return None
    reduction_id, path, digests = pointer
    # Caught here, inside ``errors()``, which would report a missing group as a missing bucket.
    with location.errors():
        try:
            group: Any = zarr.open_group(location.zarr(read_only=True), path=path, mode="r")
            texts: dict[str, Any] = {name: group.attrs[name] for name in _TEXTS if name not in _LATER_TEXTS}
            texts |= {name: group.attrs[name] for name in _LATER_TEXTS if name in group.attrs}
            arrays: dict[str, Any] = {name: np.asarray(group[name][...]) for name in _ARRAYS if name in group}
        except (ValueError, TypeError, KeyError, RuntimeError, FileNotFoundError) as error:
            raise _damaged(location, path, str(error)) from error
    # Zarr reads a missing chunk as the fill value, and a missing array looks like one that is undefined. The digests in
    # the record find both.
    if {name: _digest_of(values) for name, values in arrays.items()} != digests:
        raise _damaged(location, path, "its arrays are not those that were written")
    texts = {name: tuple(value) if isinstance(value, list) else value for name, value in texts.items()}
    texts["personas"] = tuple(tuple(persona) for persona in texts.get("personas", ()))
    return Reduction(reduction_id=reduction_id, **texts, **arrays)


def _digest_of(values: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and values, as hexadecimal digits."""
    head = f"{values.dtype.str}{values.shape}".encode()
    return sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()


def _read_pointer(location: Location) -> tuple[str, str, dict[str, str]] | None:
    pointer = location.read(layout.CURRENT_REDUCTION)
    if pointer is None:
        return None
    try:
        data = json.loads(pointer)
        return str(data["reduction_id"]), str(data["path"]), dict(data["arrays"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(location, layout.CURRENT_REDUCTION, str(error)) from error


def _damaged(location: Location, path: str, reason: str) -> StoreError:
    return StoreError(
        f"the reduction cannot be read: {reason}.",
        code="bad_reduction",
        file=f"{location.url}/{path}",
        hint=f"Delete {layout.ANALYSIS}/ and run reduce again; activations are not affected.",
    )


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
