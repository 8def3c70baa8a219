"""A made-up reduction of a full catalog, with every array filled, and the responses behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from persona_atlas.analysis.report.origin import Origin
from persona_atlas.analysis.report.samples import Key, Sample
from persona_atlas.storage.derived.reductions import Reduction

_LABELS = ("p0.01", "p0.25", "p0.5", "p0.75")
_SENTENCE = "The lamp is lit, the harbour is quiet, and I would rather talk about the tide than about myself. "


def full_reduction(
    num_roles: int = 275, num_traits: int = 240, num_layers: int = 80, d_model: int = 12, num_rollouts: int = 4000
) -> Reduction:
    """Make a reduction in which roles lie along an axis, with noise that shrinks over the layers.

    Args:
        num_roles: Number of roles.
        num_traits: Number of traits.
        num_layers: Number of layers.
        d_model: Width; at least 4.
        num_rollouts: Number of projections.
    """
    draw = np.random.default_rng(7)
    sizes_L = np.linspace(1, 40, num_layers)
    direction_LD = draw.standard_normal((num_layers, d_model))
    direction_LD /= np.linalg.norm(direction_LD, axis=1, keepdims=True)
    place_P = draw.normal(0, 2, num_roles)
    spread_D = np.linspace(1.6, 0.2, d_model)
    base_LD = draw.standard_normal((num_layers, d_model)) * 3
    noise_PLD = draw.standard_normal((num_roles, num_layers, d_model)) * spread_D
    scale_L1 = sizes_L[:, None]
    roles = (base_LD + place_P[:, None, None] * direction_LD + noise_PLD) * scale_L1
    default = roles.mean(axis=0) + 5 * direction_LD * scale_L1
    vectors = (draw.standard_normal((num_traits, num_layers, d_model)) + direction_LD) * scale_L1
    axis = default - roles.mean(axis=0)
    unit_LD = axis / np.linalg.norm(axis, axis=1, keepdims=True)
    names = _names("role", num_roles), _names("trait", num_traits)
    personas = (
        ("default", "assistant_default", "pos"),
        *(("role", name, "pos") for name in names[0]),
        *(("trait", name, polarity) for name in names[1] for polarity in ("pos", "neg")),
    )
    shown = [base_LD * scale_L1 + sign * vector / 2 for vector in vectors for sign in (1, -1)]
    mean = np.stack([default, *roles, *shown])
    projections_NL = draw.normal(0, 3, (num_rollouts, 1)) * sizes_L + (roles.mean(axis=0) * unit_LD).sum(axis=1)
    floors_QL = np.percentile(projections_NL, [99, 75, 50, 25], axis=0)
    filled: dict[str, Any] = {
        "mean": mean,
        "role_vectors": roles,
        "default_vector": default,
        "trait_vectors": vectors,
        "axis": axis,
        "axis_split_half": np.linspace(0.5, 0.99, num_layers),
        "axis_interval": np.stack([np.linspace(0.6, 0.97, num_layers), np.linspace(0.8, 0.99, num_layers)]),
        "projections": projections_NL,
        "floor_on_axis": floors_QL,
        "cap_on_minus_axis": -floors_QL,
        **_along(roles, default, vectors, unit_LD, sizes_L),
        **_components(roles, vectors, unit_LD),
    }
    arrays: dict[str, Any] = {name: np.asarray(values, dtype=np.float32) for name, values in filled.items()}
    counts: dict[str, Any] = {
        "count": draw.integers(1000, 1200, len(personas)),
        "role_counts": draw.integers(6, 1200, num_roles),
        "trait_counts": draw.integers(10, 1200, num_traits),
        "projection_rows": np.arange(num_rollouts),
    }
    facts = {
        "units": 18925,
        "units_planned": 18925,
        "rollouts": 908_400,
        "role_filter": "scored 3",
        "rollout_filter": "scored 3",
        "judge": "a-judge",
        "min_score": 3,
        "min_count": 10,
        "trait_kind": "pos_neg_50",
        "category_roles": {"fully": list(names[0]), "somewhat": list(names[0][::2])},
        "massive": {str(num_layers - 1): [1, 3]},
        "hook_point": "resid_post",
        "pooling": "response_mean",
    }
    return Reduction(
        "f" * 16,
        tuple(range(num_layers)),
        *names,
        facts,
        threshold_labels=_LABELS,
        personas=personas,
        **arrays,
        **counts,
    )


def full_origin(reduction: Reduction) -> Origin:
    """Make the origin of such a reduction, with two responses of every persona as long as they can be."""
    draw = np.random.default_rng(3)
    num_rows = 0 if reduction.projection_rows is None else len(reduction.projection_rows)
    kinds_N = draw.choice(["default", "role", "role", "trait", "trait"], size=num_rows)
    keys: list[Key] = [(kind, name) for kind, name, polarity in reduction.personas if polarity == "pos"]
    num_layers = len(reduction.layers)

    def sample(row: int) -> Sample:
        return Sample(row, _SENTENCE * 4, _SENTENCE * 2, _SENTENCE * 3, 3.0, draw.normal(0, 40, num_layers))

    return Origin(
        model="A model of 80 layers",
        lines={"model": "made up"},
        lead="908,400 rollouts, made up.",
        notes=(),
        start_layer=num_layers // 2,
        n_layers=num_layers,
        kinds_N=kinds_N,
        descriptions=dict.fromkeys(keys, _SENTENCE),
        samples={key: [sample(2 * i), sample(2 * i + 1)] for i, key in enumerate(keys)},
    )


def _names(kind: str, number: int) -> tuple[str, ...]:
    syllables = ("ba", "ren", "tol", "mi", "ka", "dur", "vel", "so", "ni", "gar", "pel", "ost")
    return tuple(
        f"{syllables[i % 12]}{syllables[i // 12 % 12]}{syllables[i // 5 % 12]}_{kind}{i}" for i in range(number)
    )


def _along(
    roles: np.ndarray, default: np.ndarray, vectors: np.ndarray, unit_LD: np.ndarray, sizes_L: np.ndarray
) -> dict[str, np.ndarray]:
    projection_PL = np.einsum("pld,ld->pl", roles, unit_LD)
    default_L = np.einsum("ld,ld->l", default, unit_LD)
    centred = roles - roles.mean(axis=0)
    return {
        "role_projection": projection_PL,
        "role_projection_interval": np.stack([projection_PL - sizes_L, projection_PL + sizes_L]),
        "default_projection": default_L,
        "default_projection_interval": np.stack([default_L - sizes_L, default_L + sizes_L]),
        "role_axis_cosine": np.einsum("pld,ld->pl", centred, unit_LD) / np.linalg.norm(centred, axis=-1),
        "trait_axis_cosine": np.einsum("tld,ld->tl", vectors, unit_LD) / np.linalg.norm(vectors, axis=-1),
    }


def _components(roles: np.ndarray, vectors: np.ndarray, unit_LD: np.ndarray) -> dict[str, np.ndarray]:
    found = _pca_arrays("", roles, unit_LD)
    if len(vectors) >= 3:
        found |= _pca_arrays("trait_", vectors, unit_LD)
    found |= _pca_arrays("category_", np.concatenate([roles, roles[::2] * 0.5]), unit_LD)
    directions, ratio, pc1_L = found["pca_components"], found["pca_variance_ratio"], found["pc1_axis_cosine"]
    return found | {
        "pc1_axis_cosine_interval": np.stack([pc1_L - 0.05, np.minimum(1, pc1_L + 0.05)]),
        "pca_default_distance": np.full(directions.shape[:2], 0.2),
        "pca_rollout_variance": ratio[:, : directions.shape[1]] / 4,
    }


def _pca_arrays(prefix: str, vectors: np.ndarray, unit_LD: np.ndarray) -> dict[str, np.ndarray]:
    mean, directions, ratio = _pca(vectors)
    scale = vectors.std(axis=0, ddof=1)
    _, z_directions, z_ratio = _pca((vectors - mean) / scale)
    pc1_L = np.abs(np.einsum("ld,ld->l", directions[:, 0], unit_LD))
    found = {
        "pca_mean": mean,
        "pca_components": directions,
        "pca_variance_ratio": ratio,
        "pc1_axis_cosine": pc1_L,
        "pca_z_scale": scale,
        "pca_z_components": z_directions,
        "pca_z_variance_ratio": z_ratio,
        "pc1_z_axis_cosine": pc1_L * 0.9,
    }
    return {f"{prefix}{name}": values for name, values in found.items()}


def _pca(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean = vectors.mean(axis=0)
    _, singular, right = np.linalg.svd(np.swapaxes(vectors - mean, 0, 1), full_matrices=False)
    variance = singular**2
    total = variance.sum(axis=1, keepdims=True)
    return mean, right, np.divide(variance, total, out=np.full_like(variance, np.nan), where=total > 1e-20)
