"""The main results of a reduction at one layer, for the terminal, ``--json`` and the report. Pure functions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..storage.derived.reductions import Reduction
from ..storage.query.run import Run
from .axis import project
from .pca import components_for

VARIANCE_SHARE = 0.7
_NUM_EXTREMES = 5


@dataclass(frozen=True, slots=True)
class Summary:
    """The main results of a reduction at one layer.

    Projections are on the axis, higher is nearer the Assistant. They are not centred, so compare them, or use z-scores.

    Attributes:
        layer: 0-based layer of all values below.
        units_done: Number of units that were committed when the run was reduced.
        units_planned: Number of units in the run.
        rollouts: Number of rollouts that count.
        rollout_filter: Which rollouts count; ``all`` without a judge.
        roles: Name, projection and z-score of each role, the nearest to the Assistant first; empty without an axis.
        default_projection: Projection of the default Assistant's mean; None without an axis.
        default_z: Its z-score relative to the roles; None without an axis.
        components_for_70: Number of components for 70 % of the variance of the role vectors; None without PCA.
        pc1_variance: Share of the first component in the variance, 0 to 1; None without PCA.
        pc1_axis_cosine: Cosine of the first component with the axis; None without PCA or an axis.
        floors: Thresholds on the axis, by label such as ``p0.25``; empty without an axis.
        notes: Sentences about what is undefined: layers without an axis or components, personas without a vector.
    """

    layer: int
    units_done: int
    units_planned: int
    rollouts: int
    rollout_filter: str
    roles: tuple[tuple[str, float, float], ...]
    default_projection: float | None
    default_z: float | None
    components_for_70: int | None
    pc1_variance: float | None
    pc1_axis_cosine: float | None
    floors: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def assistant_end(self) -> tuple[tuple[str, float, float], ...]:
        """The roles nearest the Assistant, the nearest first."""
        return self.roles[:_NUM_EXTREMES]

    @property
    def far_end(self) -> tuple[tuple[str, float, float], ...]:
        """The roles farthest from the Assistant, the farthest first."""
        return tuple(reversed(self.roles[max(_NUM_EXTREMES, len(self.roles) - _NUM_EXTREMES) :]))

    @property
    def filter_note(self) -> str:
        """A sentence about which rollouts count."""
        if self.rollout_filter == "all":
            return "No judge is configured: every rollout counts, whether or not the model adopted the persona."
        return f"Rollouts that count: {self.rollout_filter}."

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return asdict(self) | {
            "notes": list(self.notes),
            "roles": [{"role": n, "projection": p, "z_score": z} for n, p, z in self.roles],
            "direction": "axis; up is toward the Assistant",
        }


def summarise(run: Run, reduction: Reduction, layer: int | None = None) -> Summary:
    """Summarise a reduction at one layer.

    Args:
        run: The run.
        reduction: A reduction of it.
        layer: 0-based layer, one of the reduction's; None: the middle one.
    """
    layer = run.middle_layer if layer is None else layer
    at = reduction.position(layer)
    roles: tuple[tuple[str, float, float], ...] = ()
    default_projection = default_z = None
    floors: dict[str, float] = {}
    has_axis = reduction.axis is not None and layer not in reduction.undefined("axis")
    has_pca = reduction.pca_variance_ratio is not None and layer not in reduction.undefined("pca")
    if has_axis and reduction.role_vectors is not None and reduction.default_vector is not None:
        assert reduction.axis is not None
        axis_LD = reduction.axis[at : at + 1].astype(np.float64)
        of_roles = project(reduction.role_vectors[:, at : at + 1], axis_LD)[:, 0]
        z_scores = standardise(of_roles, of_roles)
        ranked = np.argsort(-of_roles, kind="stable")
        roles = tuple((reduction.role_names[i], float(of_roles[i]), float(z_scores[i])) for i in ranked)
        default_projection = float(project(reduction.default_vector[None, at : at + 1], axis_LD)[0, 0])
        default_z = float(standardise(np.array([default_projection]), of_roles)[0])
    if has_axis and reduction.floor_on_axis is not None:
        floors = {
            label: float(value)
            for label, value in zip(reduction.threshold_labels, reduction.floor_on_axis[:, at], strict=True)
        }
    ratio, pc1 = reduction.pca_variance_ratio, reduction.pc1_axis_cosine
    return Summary(
        layer=layer,
        units_done=int(reduction.facts["units"]),
        units_planned=int(reduction.facts["units_planned"]),
        rollouts=int(reduction.facts["rollouts"]),
        rollout_filter=str(reduction.facts["rollout_filter"]),
        roles=roles,
        default_projection=default_projection,
        default_z=default_z,
        components_for_70=components_for(ratio[at], VARIANCE_SHARE) if has_pca and ratio is not None else None,
        pc1_variance=float(ratio[at, 0]) if has_pca and ratio is not None else None,
        pc1_axis_cosine=float(pc1[at]) if has_axis and has_pca and pc1 is not None else None,
        floors=floors,
        notes=_notes(reduction),
    )


def _notes(reduction: Reduction) -> tuple[str, ...]:
    notes: list[str] = []
    undefined = {
        "There is no axis": reduction.undefined("axis"),
        "There are no principal components": reduction.undefined("pca"),
    }
    for subject, reasons in undefined.items():
        by_reason: dict[str, list[int]] = {}
        for layer, reason in reasons.items():
            by_reason.setdefault(reason, []).append(layer)
        for reason, layers in by_reason.items():
            place = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
            notes.append(f"{subject} at {place}: {reason}.")
    if left_out := reduction.facts.get("roles_left_out"):
        counted = f"fewer than {reduction.facts['min_count']} of their rollouts are {reduction.facts['role_filter']}"
        notes.append(f"Without a vector, because {counted} (role): {', '.join(sorted(left_out))}.")
    for kind, names in reduction.without_vector.items():
        notes.append(f"Without a vector, because every response was empty ({kind}): {', '.join(names)}.")
    return tuple(notes)


def standardise(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute z-scores relative to a reference sample.

    Args:
        values: Values to standardise.
        reference: Sample whose mean and standard deviation are used.

    Returns:
        The z-scores; zeros if all values of the reference are the same.

    Example:
        >>> standardise(np.array([6.0]), np.array([1.0, 3.0]))
        array([4.])
    """
    spread = reference.std()
    # Equal values leave a spread of a few bits of rounding.
    is_spread = spread > 1e-12 * np.abs(reference).max(initial=0.0)
    return (values - reference.mean()) / spread if is_spread else np.zeros_like(values)
