"""Vectors, axis and PCA of some layers, from the sums of every persona. What cannot be had at a layer is NaN there.

Axes: G personas by polarity, P roles, T traits with a vector, A all traits, L layers of a group, D d_model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..axis import (
    assistant_axis,
    cosine_or_nan,
    is_distinct,
    role_axis_cosines,
    split_half,
    trait_axis_cosines,
)
from ..bootstrap import bootstrap_axis
from ..classes import ALL, FULLY, HALVES, PASSING_PAIRS, SEVENTY, SOMEWHAT
from ..components.massive import massive_coordinates
from ..components.pca import Pca, default_distance, fit_pca
from ..moments import Moments
from ..vectors import TRAIT_KINDS, trait_kinds, union
from .budget import SUMS_AHEAD
from .cast import Cast
from .rollouts import Group, Persona

Arrays = dict[str, npt.NDArray[Any]]
Float64 = npt.NDArray[np.float64]
ReadSums = Callable[[Persona], dict[Group, Moments]]

_OF_KIND = {"role": "role vectors", "trait": "trait vectors", "category": "vectors of fully and somewhat played roles"}
OVERFLOW = "a value is beyond the range of float32"
_SAME_AS_ROLES = "the default Assistant and the mean of the roles have the same vector"


class LayerVectors:
    """Vectors of every persona at a group of layers.

    Args:
        cast: The personas.
        num_layers: Number of layers of the group.
        d_model: D.

    Attributes:
        arrays: The arrays of the reduction that follow from them, float32 where they are large.
        undefined: What cannot be had at which position in the group, each with the reason.
    """

    def __init__(self, cast: Cast, num_layers: int, d_model: int) -> None:
        self._cast = cast
        self._shape = (num_layers, d_model)
        self._place = {persona.address: place for place, persona in enumerate(cast.personas)}
        self._role_place = {role.name: place for place, role in enumerate(cast.roles)}
        self.arrays: Arrays = {}
        self.undefined: dict[str, dict[int, str]] = {}
        self._all_rollouts: Moments | None = None
        self.default_LD: Float64 | None = None
        self.roles_PLD = np.full((len(cast.roles), *self._shape), np.nan)
        self._default_2LD = np.full((2, *self._shape), np.nan)
        self._halves_2PLD = np.full((2, len(cast.roles), *self._shape), np.nan)
        count = len(cast.personas)
        for name in ("mean", "variance"):
            self.arrays[name] = np.full((count, *self._shape), np.nan, dtype=np.float32)
        if cast.settings.judge is not None and cast.all_roles:
            for name in ("mean_fully", "mean_somewhat"):
                self.arrays[name] = np.full((count, *self._shape), np.nan, dtype=np.float32)
        self._kinds = _kinds_with_data(cast)
        for kind in self._kinds:
            shape = (len(cast.all_traits), *self._shape)
            self.arrays[f"trait_vectors_{kind}"] = np.full(shape, np.nan, dtype=np.float32)

    @property
    def rollout_variance(self) -> Float64:
        """Total variance of the rollouts of all roles about their common mean, ``(L,)``; NaN for fewer than two."""
        if self._all_rollouts is None:
            return np.full(self._shape[0], np.nan)
        return self._all_rollouts.total_variance()

    def collect(self, read: ReadSums) -> None:
        """Read the sums of every persona and keep what the arrays need of them.

        Args:
            read: Reads the sums of a persona at these layers.
        """
        with ThreadPoolExecutor(SUMS_AHEAD) as pool:
            default = self._cast.default
            if default is not None:
                self._add_default(default, read(default))
            roles = [persona for persona in self._cast.personas if persona.kind == "role"]
            for role, groups in _in_order(pool, read, roles):
                self._add_role(role, groups)
            pairs = [p for name in self._cast.all_traits for p in self._cast.trait(name) if p is not None]
            # Neighbours in this list, and so all that is in memory of a trait.
            for name, found in groupby(_in_order(pool, read, pairs), key=lambda pair: pair[0].name):
                self._add_trait(name, dict(found))
            known = {persona.address for persona in (*roles, *pairs)}
            rest = [p for p in self._cast.personas if p.address not in known and p is not default]
            for persona, groups in _in_order(pool, read, rest):
                self._add_whole(persona, groups)

    def _add_whole(self, persona: Persona, groups: dict[Group, Moments]) -> Moments | None:
        whole = union(groups, ALL)
        if whole is not None:
            place = self._place[persona.address]
            self.arrays["mean"][place] = narrow(whole.mean_LD)
            with np.errstate(over="ignore"):
                self.arrays["variance"][place] = whole.variance()
        return whole

    def _add_default(self, persona: Persona, groups: dict[Group, Moments]) -> None:
        whole = self._add_whole(persona, groups)
        self.default_LD = None if whole is None else whole.mean_LD
        for number, half in enumerate(HALVES):
            if (found := union(groups, ALL, half)) is not None:
                self._default_2LD[number] = found.mean_LD

    def _add_role(self, role: Persona, groups: dict[Group, Moments]) -> None:
        whole = self._add_whole(role, groups)
        if whole is not None:
            self._all_rollouts = whole if self._all_rollouts is None else self._all_rollouts.merge(whole)
        for name, classes in (("mean_fully", FULLY), ("mean_somewhat", SOMEWHAT)):
            if name in self.arrays and (found := union(groups, classes)) is not None:
                self.arrays[name][self._place[role.address]] = narrow(found.mean_LD)
        place = self._role_place.get(role.name)
        if place is None:
            return
        counted = union(groups, self._cast.counted)
        assert counted is not None
        self.roles_PLD[place] = counted.mean_LD
        for number, half in enumerate(HALVES):
            if (found := union(groups, self._cast.counted, half)) is not None:
                self._halves_2PLD[number, place] = found.mean_LD

    def _add_trait(self, name: str, groups: dict[Persona, dict[Group, Moments]]) -> None:
        by_polarity = {persona.polarity: found for persona, found in groups.items()}
        for persona, found in groups.items():
            self._add_whole(persona, found)
        place = self._cast.all_traits.index(name)
        least = self._cast.settings.min_count
        found = trait_kinds(by_polarity.get("pos", {}), by_polarity.get("neg", {}), self.default_LD, least)
        for kind, (vector_LD, _) in found.items():
            if kind in self._kinds:
                self.arrays[f"trait_vectors_{kind}"][place] = narrow(vector_LD)

    def finish(self) -> tuple[Arrays, list[list[int]]]:
        """Compute axis, PCA and what follows from them.

        Returns:
            All arrays, and the coordinates with massive activations at each layer.
        """
        cast, arrays = self._cast, self.arrays
        if self.default_LD is not None:
            arrays["default_vector"] = narrow(self.default_LD)
        if cast.traits:
            rows = [cast.all_traits.index(name) for name in cast.traits]
            arrays["trait_vectors"] = arrays[f"trait_vectors_{cast.trait_kind}"][rows]
        massive: list[list[int]] = [[] for _ in range(self._shape[0])]
        axis_LD: Float64 | None = None
        if cast.roles:
            arrays["role_vectors"] = narrow(self.roles_PLD)
            axis_LD = self._axis()
            massive = massive_coordinates(self.roles_PLD.mean(axis=0))
            if len(cast.roles) >= 3:
                pca = self._add_pca("role", self.roles_PLD, axis_LD)
                # Not for traits: their vectors are differences of means, and the default is a mean.
                if self.default_LD is not None:
                    arrays["pca_default_distance"] = default_distance(pca, self.roles_PLD, self.default_LD)
        if len(cast.traits) >= 3:
            self._add_pca("trait", arrays["trait_vectors"], axis_LD)
        if sum(map(len, cast.by_category.values())) >= 3:
            self._add_pca("category", self._category_vectors(), axis_LD)
        beyond_L = np.isinf(arrays["variance"]).any(axis=(0, 2)) if len(cast.personas) else np.zeros(0, dtype=bool)
        for position in np.flatnonzero(beyond_L).tolist():
            self.undefined.setdefault("variance", {})[position] = OVERFLOW
        arrays["variance"][np.isinf(arrays["variance"])] = np.nan
        if "role_projection" in arrays:
            means_PL = np.concatenate([arrays["role_projection"], arrays["default_projection"][None]])
            for position in np.flatnonzero((np.abs(means_PL) > np.finfo(np.float32).max).any(axis=0)).tolist():
                self.undefined.setdefault("projections", {})[position] = OVERFLOW
        return {name: narrow(a) if a.dtype == np.float64 else a for name, a in arrays.items()}, massive

    def _axis(self) -> Float64 | None:
        """Compute the axis, how reliable it is, and where the means lie on it."""
        if self.default_LD is None:
            return None
        arrays, default_LD, roles_PLD = self.arrays, self.default_LD, self.roles_PLD
        axis_LD = assistant_axis(default_LD, roles_PLD)
        # NaN and not a zero vector, whose projections would look like numbers.
        self._leave_out(axis_LD, "axis", ~np.asarray(is_distinct(axis_LD, default_LD)), _SAME_AS_ROLES)
        # What is stored is float32, and beyond its range there is no axis either.
        self._leave_out(axis_LD, "axis", np.asarray(~np.isfinite(narrow(axis_LD)).all(axis=1)), OVERFLOW)
        arrays["axis"] = narrow(axis_LD)
        with np.errstate(invalid="ignore", over="ignore"):
            unit_LD = axis_LD / np.linalg.norm(axis_LD, axis=1, keepdims=True)
        arrays["role_projection"] = np.einsum("pld,ld->pl", roles_PLD, unit_LD)
        arrays["default_projection"] = np.einsum("ld,ld->l", default_LD, unit_LD)
        arrays["role_axis_cosine"] = role_axis_cosines(roles_PLD, axis_LD)
        if "trait_vectors" in arrays:
            arrays["trait_axis_cosine"] = trait_axis_cosines(arrays["trait_vectors"], axis_LD)
        arrays["axis_split_half"] = split_half(self._default_2LD, self._halves_2PLD)
        intervals = bootstrap_axis(default_LD, roles_PLD)
        arrays["axis_interval"] = intervals.axis_interval_2L
        if len(roles_PLD) >= 3:
            arrays["pc1_axis_cosine_interval"] = intervals.pc1_interval_2L
        return axis_LD

    def _leave_out(self, values_LD: Float64, what: str, is_missing_L: npt.NDArray[np.bool_], reason: str) -> None:
        values_LD[is_missing_L] = np.nan
        for position in np.flatnonzero(is_missing_L).tolist():
            self.undefined.setdefault(what, {}).setdefault(position, reason)

    def _category_vectors(self) -> npt.NDArray[np.float32]:
        """Return the vectors of fully, then of somewhat played roles, which the paper takes as separate points."""
        played = [(name, role) for name, roles in self._cast.by_category.items() for role in roles]
        vectors_PLD = np.empty((len(played), *self._shape), dtype=np.float32)
        for place, (category, role) in enumerate(played):
            vectors_PLD[place] = self.arrays[f"mean_{category}"][self._place[role.address]]
        return vectors_PLD

    def _add_pca(
        self, kind: Literal["role", "trait", "category"], vectors_PLD: npt.NDArray[np.floating], axis_LD: Float64 | None
    ) -> Pca:
        """Compute the centred and the z-scored PCA of a kind of vectors; return the centred one."""
        arrays, prefix = self.arrays, "" if kind == "role" else f"{kind}_"
        pca = fit_pca(vectors_PLD, axis_LD)
        arrays[f"{prefix}pca_mean"], arrays[f"{prefix}pca_components"] = pca.mean_LD, pca.components_LKD
        arrays[f"{prefix}pca_variance_ratio"] = pca.variance_ratio_LM
        for position in np.flatnonzero(~pca.defined_L).tolist():
            # Vectors that were narrowed already are NaN where they are beyond float32.
            is_known = np.isfinite(vectors_PLD[:, position]).all()
            reason = f"the {_OF_KIND[kind]} are all the same" if is_known else OVERFLOW
            self.undefined.setdefault(f"{prefix}pca", {})[position] = reason
        scaled = fit_pca(vectors_PLD, axis_LD, standardised=True)
        assert scaled.scale_LD is not None
        arrays[f"{prefix}pca_z_scale"], arrays[f"{prefix}pca_z_components"] = scaled.scale_LD, scaled.components_LKD
        arrays[f"{prefix}pca_z_variance_ratio"] = scaled.variance_ratio_LM
        if axis_LD is not None:
            arrays[f"{prefix}pc1_axis_cosine"] = cosine_or_nan(pca.components_LKD[:, 0], axis_LD)
            scaled_axis_LD = axis_LD / scaled.scale_LD
            arrays[f"{prefix}pc1_z_axis_cosine"] = cosine_or_nan(scaled.components_LKD[:, 0], scaled_axis_LD)
        return pca


def narrow(values: Float64) -> npt.NDArray[np.float32]:
    """Convert to float32; what is beyond its range is NaN and not infinite."""
    with np.errstate(over="ignore"):
        stored = values.astype(np.float32)
    stored[np.isinf(stored)] = np.nan
    return stored


def counts_of(cast: Cast) -> Arrays:
    """Return the numbers of rollouts behind means and vectors, int64."""

    def whole(numbers: Iterable[int]) -> npt.NDArray[np.int64]:
        return np.array(list(numbers), dtype=np.int64)

    found: Arrays = {"count": whole(persona.count for persona in cast.personas)}
    if cast.settings.judge is not None and cast.all_roles:
        found["count_fully"] = whole(persona.count_in(FULLY) for persona in cast.personas)
        found["count_somewhat"] = whole(persona.count_in(SOMEWHAT) for persona in cast.personas)
    if cast.roles:
        found["role_counts"] = whole(role.count_in(cast.counted) for role in cast.roles)
    by_kind = {kind: _trait_counts(cast, kind) for kind in _kinds_with_data(cast)}
    found |= {f"trait_counts_{kind}": whole(counts) for kind, counts in by_kind.items()}
    if cast.traits:
        rows = [cast.all_traits.index(name) for name in cast.traits]
        found["trait_counts"] = found[f"trait_counts_{cast.trait_kind}"][rows]
    return found


def _kinds_with_data(cast: Cast) -> tuple[str, ...]:
    """Return the kinds of trait vectors that at least one trait has."""
    return tuple(kind for kind in TRAIT_KINDS if any(_trait_counts(cast, kind)))


def _trait_counts(cast: Cast, kind: str) -> list[int]:
    """Return the number of pairs or rollouts behind each trait's vector of a kind; 0 for none."""
    counts: list[int] = []
    for name in cast.all_traits:
        pos, neg = cast.trait(name)
        assert pos is not None
        passing, strong = pos.count_in(PASSING_PAIRS), pos.count_in(SEVENTY)
        least = cast.settings.min_count
        count = {
            "pos_neg": pos.count if neg is not None else 0,
            "pos_neg_50": passing if passing >= least else 0,
            "pos_default": pos.count if cast.default is not None else 0,
            "pos_70": strong if strong >= least else 0,
        }[kind]
        counts.append(count)
    return counts


def _in_order(
    pool: ThreadPoolExecutor, read: ReadSums, personas: Sequence[Persona]
) -> Iterator[tuple[Persona, dict[Group, Moments]]]:
    """Read the sums of personas, a few ahead of the one that is used, so that few are in memory."""
    waiting: deque[Future[dict[Group, Moments]]] = deque()
    ahead = iter(personas)
    for persona in personas:
        waiting.extend(pool.submit(read, other) for other in islice(ahead, SUMS_AHEAD - len(waiting)))
        yield persona, waiting.popleft().result()
