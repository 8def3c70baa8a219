"""A reduction's figures at every layer, in the shape that other programs read. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...storage.derived.reductions import Reduction
from ..components.pca import components_for

VARIANCE_RATIOS = 5
"""Number of components whose share of the variance is given."""
SHARES = (0.7, 0.8, 0.9)
"""Shares of the variance for which components are counted."""


def as_document(reduction: Reduction) -> dict[str, Any]:
    """Build the part of ``reduce --json`` that has a value for every layer; None where it is undefined.

    Intervals have the lower end at every layer, then the upper end. Values of components are a list for every layer.

    Args:
        reduction: The reduction.
    """
    return {
        "layers": list(reduction.layers),
        "judge": reduction.facts.get("judge"),
        "role_filter": reduction.facts.get("role_filter", "all"),
        "min_count": reduction.facts.get("min_count"),
        "axis": {
            "pc1_cosine": _plain(reduction.pc1_axis_cosine),
            "pc1_cosine_interval": _rows(reduction.pc1_axis_cosine_interval),
            "pc1_z_cosine": _plain(reduction.pc1_z_axis_cosine),
            "split_half": _plain(reduction.axis_split_half),
            "interval": _rows(reduction.axis_interval),
        },
        "pca": _shares(reduction.pca_variance_ratio) | {"default_distance": _rows(reduction.pca_default_distance)},
        "trait_pca": _shares(reduction.trait_pca_variance_ratio)
        | {
            "vectors": len(reduction.trait_names),
            "pc1_cosine": _plain(reduction.trait_pc1_axis_cosine),
            "pc1_z_cosine": _plain(reduction.trait_pc1_z_axis_cosine),
        },
        "category_pca": _shares(reduction.category_pca_variance_ratio)
        | {
            "vectors": {name: len(roles) for name, roles in reduction.facts.get("category_roles", {}).items()},
            "pc1_cosine": _plain(reduction.category_pc1_axis_cosine),
            "pc1_z_cosine": _plain(reduction.category_pc1_z_axis_cosine),
        },
        "thresholds": {
            "axis_sign": _by_label(reduction.threshold_labels, reduction.floor_on_axis),
            "released_sign": _by_label(reduction.threshold_labels, reduction.cap_on_minus_axis),
        },
    }


def _shares(ratio_LM: np.ndarray | None) -> dict[str, Any]:
    return {
        "variance_ratio": None if ratio_LM is None else _rows(ratio_LM[:, :VARIANCE_RATIOS]),
        "components_for": {
            f"{share:g}": None if ratio_LM is None else [_components(row, share) for row in ratio_LM]
            for share in SHARES
        },
    }


def _by_label(labels: Sequence[str], values_QL: np.ndarray | None) -> dict[str, list[float | None] | None]:
    return {} if values_QL is None else {label: _plain(row) for label, row in zip(labels, values_QL, strict=True)}


def _plain(values: np.ndarray | None) -> list[float | None] | None:
    return None if values is None else _numbers(values)


def _rows(values: np.ndarray | None) -> list[list[float | None]] | None:
    return None if values is None else [_numbers(row) for row in values]


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _components(ratio_M: np.ndarray, share: float) -> int | None:
    return components_for(ratio_M, share) if np.isfinite(ratio_M).all() else None
