"""What a reduction holds: vectors, axis, PCA, projections and thresholds of a run, by layer.

Axes: G personas by polarity, P roles and T traits with a vector, A all traits, L layers, D d_model, K components that
are kept, M all components, N rollouts, Q percentile labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError

Float32 = npt.NDArray[np.float32]


class StoredArray(ABC):
    """An array of a reduction that is in the store and not fetched yet; takes the place of the array in its field."""

    @abstractmethod
    def whole(self) -> npt.NDArray[Any]:
        """Fetch all of it, once."""

    @abstractmethod
    def at(self, positions: Sequence[int]) -> npt.NDArray[Any]:
        """Fetch some positions along the axis L."""


@dataclass(frozen=True, eq=False)
class Reduction:
    """Vectors, axis, PCA, projections and thresholds of a run, per layer. Arrays are float32 unless stated otherwise.

    An array is None where it is undefined: the axis needs the default and a role, PCA at least three roles. At a layer
    where the vectors are all the same there is no axis, or there are no components; ``undefined`` names these layers,
    and there the arrays that follow from them are NaN. The axis points toward the Assistant. A projection is the dot
    product with the axis normalised to unit length, not centred. Of a reduction that was read from a store, an array is
    fetched when it is first used, and kept; ``read`` fetches some layers of it.

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
        trait_vectors: ``(T, L, D)``, of the kind ``facts["trait_kind"]``: ``pos_neg_50`` with a judge, else
            ``pos_neg``.
        trait_counts: ``(T,)`` int64, number of pairs, or of rollouts with the trait, behind each.
        trait_vectors_pos_neg: ``(A, L, D)``, of every trait (``facts["all_traits"]``): mean of the trait shown minus
            mean of its opposite, no filter. NaN where there is none; the same for the next three.
        trait_vectors_pos_neg_50: ``(A, L, D)``, over pairs of one prompt, question and sample whose scores differ by
            more than 50.
        trait_vectors_pos_default: ``(A, L, D)``, mean of the trait shown minus ``default_vector``.
        trait_vectors_pos_70: ``(A, L, D)``, mean over rollouts of the trait shown that are scored 70 or more.
        trait_counts_pos_neg: ``(A,)`` int64, rollouts of the trait shown; of the other kinds likewise, pairs for
            ``pos_neg_50``.
        trait_counts_pos_neg_50: ``(A,)`` int64.
        trait_counts_pos_default: ``(A,)`` int64.
        trait_counts_pos_70: ``(A,)`` int64.
        axis: ``(L, D)``, ``default_vector`` minus the mean of ``role_vectors``, not normalised.
        axis_split_half: ``(L,)``, cosine between the axes of the questions with even and with odd index.
        axis_interval: ``(2, L)``, 2.5th and 97.5th percentile, over bootstrap samples of the roles, of the cosine
            between the axis of the sample and ``axis``.
        role_projection: ``(P, L)``, projection of each role vector on the axis.
        role_projection_interval: ``(2, P, L)``, 95 % interval of it, by a bootstrap over questions.
        default_projection: ``(L,)``, projection of ``default_vector``.
        default_projection_interval: ``(2, L)``, 95 % interval of it, by a bootstrap over questions.
        role_axis_cosine: ``(P, L)``, cosine of each role vector, centred on the mean of ``role_vectors``, with the
            axis.
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
        trait_pc1_axis_cosine: ``(L,)``, cosine between the first component of the trait vectors and the axis.
        trait_pca_z_scale: ``(L, D)``, standard deviation of ``trait_vectors``.
        trait_pca_z_components: ``(L, K, D)``, components of the z-scored trait vectors, in z-scores.
        trait_pca_z_variance_ratio: ``(L, M)``.
        trait_pc1_z_axis_cosine: ``(L,)``, cosine between the first of them and the axis divided by the scale.
        category_pca_mean: ``(L, D)``, mean of the vectors of ``mean_fully``, then of ``mean_somewhat``, of the roles
            that ``facts["category_roles"]`` names: with at least ``facts["min_count"]`` such rollouts. The points of
            the paper's PCA; the arrays below are of them too.
        category_pca_components: ``(L, K, D)``.
        category_pca_variance_ratio: ``(L, M)``.
        category_pc1_axis_cosine: ``(L,)``, cosine between their first component and the axis.
        category_pca_z_scale: ``(L, D)``, their standard deviation.
        category_pca_z_components: ``(L, K, D)``, components of the z-scored vectors, in z-scores.
        category_pca_z_variance_ratio: ``(L, M)``.
        category_pc1_z_axis_cosine: ``(L,)``, cosine between the first of them and the axis divided by the scale.
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
    trait_pc1_axis_cosine: Float32 | None = None
    trait_pca_z_scale: Float32 | None = None
    trait_pca_z_components: Float32 | None = None
    trait_pca_z_variance_ratio: Float32 | None = None
    trait_pc1_z_axis_cosine: Float32 | None = None
    category_pca_mean: Float32 | None = None
    category_pca_components: Float32 | None = None
    category_pca_variance_ratio: Float32 | None = None
    category_pc1_axis_cosine: Float32 | None = None
    category_pca_z_scale: Float32 | None = None
    category_pca_z_components: Float32 | None = None
    category_pca_z_variance_ratio: Float32 | None = None
    category_pc1_z_axis_cosine: Float32 | None = None
    projections: Float32 | None = None
    projection_rows: npt.NDArray[np.int64] | None = None
    threshold_labels: tuple[str, ...] = ()
    personas: tuple[tuple[str, str, str], ...] = ()
    cap_on_minus_axis: Float32 | None = None
    floor_on_axis: Float32 | None = None

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return value.whole() if isinstance(value, StoredArray) else value

    def read(self, name: str, layers: Sequence[int] | None = None) -> npt.NDArray[Any] | None:
        """Return an array at some layers; of a reduction that was read from a store, no other layer is fetched.

        Args:
            name: Name of an array.
            layers: 0-based layers, each one of the reduction's; None: all.

        Returns:
            The array, its axis L as long as ``layers`` and in their order; None where the array is None. An array
            without an axis L is returned whole.

        Raises:
            ValueError: There is no array of that name.
            InputError: A layer is not in the reduction.
            StoreError: The array is damaged.

        Example:
            >>> made = Reduction("id", (4, 7), (), (), {}, axis=np.array([[1, 2], [3, 4]], dtype=np.float32))
            >>> made.read("axis", [7])
            array([[3., 4.]], dtype=float32)
        """
        if name not in ARRAYS:
            raise ValueError(f"a reduction has no array {name!r}")
        value = object.__getattribute__(self, name)
        if value is None or layers is None or name not in LAYER_AXIS:
            return getattr(self, name)
        positions = [self.position(layer) for layer in layers]
        if isinstance(value, StoredArray):
            return value.at(positions)
        return np.take(value, positions, axis=LAYER_AXIS[name])

    def position(self, layer: int) -> int:
        """Return a layer's index along the L axis.

        Args:
            layer: 0-based layer.

        Raises:
            InputError: The layer is not in the reduction.
        """
        if layer in self.layers:
            return self.layers.index(layer)
        raise InputError(
            self._not_there(layer), code="no_such_layer", field="layer", hint="Choose another layer; 0 is the first."
        )

    def _not_there(self, layer: int) -> str:
        return f"layer {layer} is not in the reduction, which has {self.layers[0]} to {self.layers[-1]}."

    def undefined(
        self, what: Literal["axis", "pca", "trait_pca", "category_pca", "variance", "projections"]
    ) -> dict[int, str]:
        """Return the layers without an axis, or without components, each with the reason; empty for most runs.

        Args:
            what: ``axis``: ``axis``, projections and thresholds are NaN there. ``pca``: components and their shares
                are. ``pc1_axis_cosine`` is NaN where either is undefined. ``trait_pca`` and ``category_pca``: the same
                for trait vectors, and for those of fully and somewhat played roles.
                ``variance`` and ``projections``: single values of ``variance``, or all projections, are NaN although
                there is an axis, because one is beyond the range of float32.
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
            message = self._not_there(layer)
        elif self.axis is None:
            message = "the run has no axis: it needs rollouts of the default Assistant and of a role."
        elif layer in self.undefined("axis"):
            message = f"there is no axis at layer {layer}: {self.undefined('axis')[layer]}."
        else:
            return self.axis[self.position(layer)]
        raise InputError(message, code="no_axis", field="layer", hint="Choose another layer.")


TEXTS = ("layers", "role_names", "trait_names", "facts", "threshold_labels", "personas")
"""Fields that are no arrays."""

ARRAYS = tuple(f.name for f in fields(Reduction) if f.name not in ("reduction_id", *TEXTS))
"""Fields that are arrays, or None."""

_LAYERS_SECOND = (
    "mean",
    "variance",
    "mean_fully",
    "mean_somewhat",
    "role_vectors",
    "trait_vectors",
    "trait_vectors_pos_neg",
    "trait_vectors_pos_neg_50",
    "trait_vectors_pos_default",
    "trait_vectors_pos_70",
    "axis_interval",
    "role_projection",
    "default_projection_interval",
    "role_axis_cosine",
    "trait_axis_cosine",
    "pc1_axis_cosine_interval",
    "projections",
    "cap_on_minus_axis",
    "floor_on_axis",
)
_LAYERS_FIRST = (
    "default_vector",
    "axis",
    "axis_split_half",
    "default_projection",
    "pca_mean",
    "pca_components",
    "pca_variance_ratio",
    "pca_default_distance",
    "pca_rollout_variance",
    "pc1_axis_cosine",
    "pca_z_scale",
    "pca_z_components",
    "pca_z_variance_ratio",
    "pc1_z_axis_cosine",
    "trait_pca_mean",
    "trait_pca_components",
    "trait_pca_variance_ratio",
    "trait_pc1_axis_cosine",
    "trait_pca_z_scale",
    "trait_pca_z_components",
    "trait_pca_z_variance_ratio",
    "trait_pc1_z_axis_cosine",
    "category_pca_mean",
    "category_pca_components",
    "category_pca_variance_ratio",
    "category_pc1_axis_cosine",
    "category_pca_z_scale",
    "category_pca_z_components",
    "category_pca_z_variance_ratio",
    "category_pc1_z_axis_cosine",
)
LAYER_AXIS: dict[str, int] = (
    dict.fromkeys(_LAYERS_FIRST, 0) | dict.fromkeys(_LAYERS_SECOND, 1) | {"role_projection_interval": 2}
)
"""Position of the axis L in each array that has one; counts and ``projection_rows`` have none."""
