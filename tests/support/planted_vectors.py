"""A run whose current reduction has a known axis: the default lies above every role, and rollouts lie along it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from persona_atlas.analysis.axis import assistant_axis, project, unit
from persona_atlas.analysis.thresholds import thresholds
from persona_atlas.storage.derived.reductions import Reduction, write_reduction
from persona_atlas.storage.query.run import Run, open_run

from fakes import FACTS
from stored_runs import small_run

LAYERS, WIDTH = FACTS.n_layers, FACTS.d_model
ROLES = ("pirate", "poet", "stoic", "void")
TRAITS = ("sarcastic", "stoic")


@dataclass(frozen=True)
class Planted:
    """Vectors made from a direction that is known.

    Attributes:
        reduction: The vectors.
        direction_LD: The direction toward the Assistant, of unit length.
        rollouts_NLD: Activations of single rollouts, which the thresholds were computed from.
    """

    reduction: Reduction
    direction_LD: np.ndarray
    rollouts_NLD: np.ndarray


def plant(layers: tuple[int, ...] = tuple(range(LAYERS))) -> Planted:
    """Make vectors for some layers: a large common mean, roles at -4 to -1 along the direction, the default at 6."""
    random = np.random.default_rng(7)
    direction_LD = unit(random.standard_normal((len(layers), WIDTH)))
    mean_LD = 20 * random.standard_normal((len(layers), WIDTH))
    away = -np.arange(1.0, len(ROLES) + 1)
    role_vectors = mean_LD + away[:, None, None] * direction_LD + 0.1 * random.standard_normal((4, *mean_LD.shape))
    default = mean_LD + 6 * direction_LD
    axis = assistant_axis(default, role_vectors)
    rollouts = mean_LD + 3 * random.standard_normal((200, 1, 1)) * direction_LD
    found = thresholds(project(rollouts, axis))
    reduction = Reduction(
        reduction_id="planted",
        layers=layers,
        role_names=ROLES,
        trait_names=TRAITS,
        facts={
            "hook_point": "resid_post",
            "pooling": "response_mean",
            "rollout_filter": "scored 3",
            "role_filter": "scored 3",
            "units": 12,
            "units_planned": 12,
            "rollouts": 36,
        },
        role_vectors=role_vectors.astype(np.float32),
        role_counts=np.array([5, 6, 7, 8]),
        default_vector=default.astype(np.float32),
        trait_vectors=random.standard_normal((2, len(layers), WIDTH)).astype(np.float32),
        axis=axis.astype(np.float32),
        projections=project(rollouts, axis).astype(np.float32),
        projection_rows=np.arange(200),
        threshold_labels=found.labels,
        cap_on_minus_axis=found.cap_on_minus_axis_QL.astype(np.float32),
        floor_on_axis=found.floor_on_axis_QL.astype(np.float32),
    )
    return Planted(reduction, direction_LD, rollouts)


def planted_run(url: str, reduction: Reduction) -> Run:
    """Store a small run, and make a reduction its current one."""
    location = small_run(url).location
    write_reduction(location, reduction)
    return open_run(url)
