"""Compare two reductions: two models, two judges, two checkpoints, or a base model and its fine-tune.

Roles are matched by name and layers by their depth, so that models of any width and depth can be compared by how they
order the same roles. Vectors themselves are compared only where both are equally wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...jobs.errors import InputError
from .one_layer import RolesAtLayer, Side, compare_layer, match_components
from .results import Comparison, MovedRole

_MIN_ROLES = 3

_FEW_ROLES = 10
"""Common roles below which correlations are warned of.

Correlations of unrelated orders of n roles scatter about zero by 1 / sqrt(n - 1): by 0.71 with three roles, 0.33 with
ten. Components are matched by the largest of up to 25 of them, which is nearer to 1 by choice alone. And n roles differ
in n - 1 directions at most: with six or fewer, the five components hold all that there is, whatever the models.
"""


def match_layers(
    layers_a: Sequence[int], n_layers_a: int, layers_b: Sequence[int], n_layers_b: int
) -> list[tuple[int, int]]:
    """Pair layers at the same depth: the share of a model's layers that have been passed after this one.

    Models of one depth have the same layers paired. Otherwise each layer of the first has the nearest captured layer of
    the second, if it is less than half a layer of the shallower model away.

    Args:
        layers_a: Captured layers of the first, 0-based.
        n_layers_a: Number of layers of its model.
        layers_b: Captured layers of the second.
        n_layers_b: Number of layers of its model.

    Example:
        >>> match_layers(range(4), 4, range(4), 4)
        [(0, 0), (1, 1), (2, 2), (3, 3)]
        >>> match_layers([1, 3], 4, range(8), 8)
        [(1, 3), (3, 7)]
    """
    pairs: list[tuple[int, int]] = []
    # In 1 / (n_layers_a * n_layers_b) of the depth, so that nothing is rounded.
    half_a_layer = max(n_layers_a, n_layers_b) / 2 if n_layers_a != n_layers_b else 0
    for layer in layers_a:
        distance, nearest = min(
            ((abs((layer + 1) * n_layers_b - (other + 1) * n_layers_a), other) for other in layers_b),
            default=(float("inf"), -1),
        )
        if distance <= half_a_layer:
            pairs.append((layer, nearest))
    return pairs


def compare(a: Side, b: Side, layer: int | None = None) -> Comparison:
    """Compare two reductions at every depth that both have, and in detail at one.

    Args:
        a: The first.
        b: The second.
        layer: Layer of the first to compare in detail; None: the one nearest to the middle of its model.

    Returns:
        The comparison; numbers that are not to be had are None.

    Raises:
        InputError: A reduction has no role vectors, fewer than three roles are common, no layer is at a common depth,
            or ``layer`` has no partner.
        StoreError: An array of a stored reduction is damaged.

    Example:
        >>> from persona_atlas import open_run, reduce
        >>> from persona_atlas.analysis.comparison.sides import side_of
        >>> made = [reduce(store, progress=False) for store in ("runs/demo", "runs/tokens")]
        >>> found = compare(side_of(open_run("runs/demo")), side_of(open_run("runs/tokens")))
        >>> found.at.layer_a, found.at.layer_b, [component.is_flipped for component in found.components][:1]
        (15, 15, [False])
    """
    for side in (a, b):
        if not side.reduction.role_names:
            raise InputError(
                "the reduction has no role vectors to compare.", code="nothing_to_compare", file=side.store
            )
    common = sorted(set(a.reduction.role_names) & set(b.reduction.role_names))
    if len(common) < _MIN_ROLES:
        raise InputError(
            f"a comparison needs at least {_MIN_ROLES} roles that both have, and there are {len(common)}.",
            code="few_common_roles",
            file=b.store,
            hint=f"{a.store} has {_listed(a.reduction.role_names)}; {b.store} has {_listed(b.reduction.role_names)}.",
        )
    pairs = match_layers(a.reduction.layers, a.n_layers, b.reduction.layers, b.n_layers)
    if not pairs:
        raise InputError(
            f"the two have no layer at the same depth: {list(a.reduction.layers)} of {a.n_layers} and "
            f"{list(b.reduction.layers)} of {b.n_layers}.",
            code="no_common_layer",
            file=b.store,
            hint="Capture layers that both models have, as capture.layers=all does.",
        )
    chosen = _chosen(pairs, a, layer)
    layers = tuple(compare_layer(RolesAtLayer(a, of_a, common), RolesAtLayer(b, of_b, common)) for of_a, of_b in pairs)
    at_a, at_b = RolesAtLayer(a, chosen[0], common), RolesAtLayer(b, chosen[1], common)
    default_z: tuple[float, float] | None = None
    if at_a.default_z is not None and at_b.default_z is not None:
        default_z = at_a.default_z, at_b.default_z
    return Comparison(
        roles=tuple(common),
        layers=layers,
        at=next(found for found in layers if (found.layer_a, found.layer_b) == chosen),
        components=tuple(match_components(at_a.scores_PK, at_b.scores_PK, at_a.components_KD, at_b.components_KD)),
        moved=_moved(common, at_a.z_scores, at_b.z_scores),
        default_z=default_z,
        notes=tuple(_notes(a, b, common)),
    )


def _moved(
    common: Sequence[str], z_scores_a: Sequence[float] | None, z_scores_b: Sequence[float] | None
) -> tuple[MovedRole, ...]:
    if z_scores_a is None or z_scores_b is None:
        return ()
    roles = [MovedRole(*found) for found in zip(common, z_scores_a, z_scores_b, strict=True)]
    return tuple(sorted(roles, key=lambda role: -abs(role.change)))


def _chosen(pairs: list[tuple[int, int]], a: Side, layer: int | None) -> tuple[int, int]:
    if layer is None:
        return min(pairs, key=lambda pair: abs(pair[0] - a.n_layers // 2))
    for pair in pairs:
        if pair[0] == layer:
            return pair
    there = [of_a for of_a, _ in pairs]
    is_gapless = there == list(range(there[0], there[-1] + 1)) and len(there) > 2
    shown = f"{there[0]} to {there[-1]}" if is_gapless else ", ".join(map(str, there))
    known = a.reduction.layers
    raise InputError(
        f"layer {layer} of the first has no layer of the second at its depth."
        if layer in known
        else f"the first has no layer {layer}; it has {known[0]} to {known[-1]}.",
        code="no_common_layer",
        field="--layer",
        hint=f"Choose one of {shown}.",
    )


def _notes(a: Side, b: Side, common: Sequence[str]) -> list[str]:
    notes: list[str] = []
    if len(common) < _FEW_ROLES:
        notes.append(
            f"Only {len(common)} roles are common, and correlations over so few say little: those of unrelated orders "
            f"scatter by {1 / math.sqrt(len(common) - 1):.2f} about 0. Compare {_FEW_ROLES} roles or more."
        )
    facts_a, facts_b = a.reduction.facts, b.reduction.facts
    axes = [side.reduction.read("axis", side.reduction.layers[:1]) for side in (a, b)]
    widths = {axis_1D.shape[-1] if axis_1D is not None else None for axis_1D in axes}
    is_as_wide = len(widths) == 1 and None not in widths
    if a.model != b.model and is_as_wide:
        notes.append(
            "The models differ. The cosine of their axes has a meaning if one was trained from the other; models that "
            "were trained apart have coordinates of their own, and only correlations over roles compare them."
        )
    for name, words in (
        ("hook_point", "Hook points"),
        ("pooling", "Poolings"),
        ("role_filter", "The rollouts that count"),
        ("judge", "Judges"),
        ("min_count", "The least numbers of rollouts"),
    ):
        # Reductions of earlier versions lack some.
        if name in facts_a and name in facts_b and facts_a[name] != facts_b[name]:
            notes.append(f"{words} differ: {_plain(facts_a[name])} and {_plain(facts_b[name])}.")
    for side in (a, b):
        alone = sorted(set(side.reduction.role_names) - set(common))
        if alone:
            notes.append(f"Only in {side.store} (reduction {side.reduction.reduction_id}): {_listed(alone)}.")
    return notes


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}" if names else "none"
