"""The main results of a reduction at one layer, for the terminal, ``--json`` and the report. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..jobs.personas import DEFAULT_PERSONA
from ..storage.derived.reductions import Reduction
from ..storage.query.run import Run
from .axis import project
from .components.pca import components_for
from .left_out import left_out_sentences
from .reliability import trust

VARIANCE_SHARE = 0.7
_NUM_EXTREMES = 5


class RankedRole(NamedTuple):
    """A role's place on the axis at one layer.

    Attributes:
        name: Name of the role.
        projection: Projection of its vector; higher is nearer the Assistant.
        z_score: Its z-score among the roles.
        rollouts: Number of rollouts behind its vector; None in reductions that do not hold it.
        interval: 95 % interval of the projection; None where there is none.
    """

    name: str
    projection: float
    z_score: float
    rollouts: int | None = None
    interval: tuple[float, float] | None = None


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
        roles: The roles, the nearest to the Assistant first; empty without an axis.
        default_projection: Projection of the default Assistant's mean; None without an axis.
        default_z: Its z-score relative to the roles; None without an axis.
        components_for_70: Number of components for 70 % of the variance of the role vectors; None without PCA.
        components_for_70_by_category: The same for the vectors of fully and of somewhat played roles together,
            which are the paper's points; None without a judge, with fewer than three, or with none of one category.
        category_vectors: Number of those vectors by category; empty without a judge.
        pc1_variance: Share of the first component in the variance, 0 to 1; None without PCA.
        pc1_axis_cosine: Cosine of the first component with the axis; None without PCA or an axis.
        floors: Thresholds on the axis, by label such as ``p0.25``; empty without an axis.
        notes: Sentences about what is undefined: layers without an axis or components, personas without a vector.
        filter_note: A sentence about which rollouts count.
        split_half: Cosine between the axes of two halves of the questions; None where it is not known.
        axis_interval: 95 % interval of the cosine of the axis with that of other samples of roles; None likewise.
        default_interval: 95 % interval of the projection of the default Assistant; None where there is none.
        default_rollouts: Number of rollouts of the default Assistant; None in reductions that do not hold it.
        trust: Sentences on what limits the trust in the axis at this layer; empty without an axis.
    """

    layer: int
    units_done: int
    units_planned: int
    rollouts: int
    rollout_filter: str
    roles: tuple[RankedRole, ...]
    default_projection: float | None
    default_z: float | None
    components_for_70: int | None
    pc1_variance: float | None
    pc1_axis_cosine: float | None
    floors: dict[str, float]
    notes: tuple[str, ...] = ()
    filter_note: str = ""
    split_half: float | None = None
    axis_interval: tuple[float, float] | None = None
    default_interval: tuple[float, float] | None = None
    default_rollouts: int | None = None
    components_for_70_by_category: int | None = None
    category_vectors: dict[str, int] = field(default_factory=dict)
    trust: tuple[str, ...] = ()

    @property
    def assistant_end(self) -> tuple[RankedRole, ...]:
        """The roles nearest the Assistant, the nearest first."""
        return self.roles[:_NUM_EXTREMES]

    @property
    def far_end(self) -> tuple[RankedRole, ...]:
        """The roles farthest from the Assistant, the farthest first."""
        return tuple(reversed(self.roles[max(_NUM_EXTREMES, len(self.roles) - _NUM_EXTREMES) :]))

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        roles = [
            {
                "role": role.name,
                "projection": role.projection,
                "z_score": role.z_score,
                "rollouts": role.rollouts,
                "interval": None if role.interval is None else list(role.interval),
            }
            for role in self.roles
        ]
        return asdict(self) | {
            "notes": list(self.notes),
            "trust": list(self.trust),
            "axis_interval": None if self.axis_interval is None else list(self.axis_interval),
            "default_interval": None if self.default_interval is None else list(self.default_interval),
            "roles": roles,
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
    roles: tuple[RankedRole, ...] = ()
    default_projection = default_z = None
    floors: dict[str, float] = {}
    has_axis = reduction.axis is not None and layer not in reduction.undefined("axis")
    has_pca = reduction.pca_variance_ratio is not None and layer not in reduction.undefined("pca")
    if has_axis and reduction.role_vectors is not None and reduction.default_vector is not None:
        of_roles, default_projection = _projections(reduction, at)
        roles = _ranked(reduction, at, of_roles)
        default_z = float(standardise(np.array([default_projection]), of_roles)[0])
    if has_axis and reduction.floor_on_axis is not None:
        floors = {
            label: float(value)
            for label, value in zip(reduction.threshold_labels, reduction.floor_on_axis[:, at], strict=True)
        }
    ratio, pc1 = reduction.pca_variance_ratio, reduction.pc1_axis_cosine
    categories = {name: len(roles) for name, roles in reduction.facts.get("category_roles", {}).items()}
    of_categories = reduction.category_pca_variance_ratio
    # With one category alone these are not the paper's points.
    if layer in reduction.undefined("category_pca") or not all(categories.values()):
        of_categories = None
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
        pc1_axis_cosine=_known(pc1[at]) if has_axis and has_pca and pc1 is not None else None,
        floors=floors,
        notes=notes_of(reduction),
        filter_note=filter_note(reduction.facts),
        split_half=_known(reduction.axis_split_half[at]) if reduction.axis_split_half is not None else None,
        axis_interval=_interval(reduction.axis_interval, at),
        default_interval=_interval(reduction.default_projection_interval, at),
        default_rollouts=default_count(reduction),
        components_for_70_by_category=None
        if of_categories is None
        else components_for(of_categories[at], VARIANCE_SHARE),
        category_vectors=categories,
        trust=tuple(_trust(run, reduction, at)) if roles else (),
    )


def default_count(reduction: Reduction) -> int | None:
    """Return the number of rollouts behind the default vector; None in reductions that do not hold it."""
    key = ("default", DEFAULT_PERSONA, "pos")
    if reduction.count is None or key not in reduction.personas:
        return None
    return int(reduction.count[reduction.personas.index(key)])


def _trust(run: Run, reduction: Reduction, at: int) -> list[str]:
    counts = reduction.role_counts
    if counts is None or reduction.axis_split_half is None:
        return []
    return trust(
        reduction.layers[at],
        num_roles=len(reduction.role_names),
        num_questions=len(run.index["question_index"].unique()),
        least_rollouts=int(counts.min()),
        split_half=float(reduction.axis_split_half[at]),
        axis_interval=_interval(reduction.axis_interval, at),
    )


def _projections(reduction: Reduction, at: int) -> tuple[np.ndarray, float]:
    """Return the projections of the roles, ``(P,)``, and of the default, at a layer that has an axis."""
    assert reduction.axis is not None
    assert reduction.role_vectors is not None
    assert reduction.default_vector is not None
    axis_LD = reduction.axis[at : at + 1].astype(np.float64)
    of_roles = project(reduction.role_vectors[:, at : at + 1], axis_LD)[:, 0]
    return of_roles, float(project(reduction.default_vector[None, at : at + 1], axis_LD)[0, 0])


def _ranked(reduction: Reduction, at: int, of_roles: np.ndarray) -> tuple[RankedRole, ...]:
    z_scores = standardise(of_roles, of_roles)
    counts, intervals = reduction.role_counts, reduction.role_projection_interval
    return tuple(
        RankedRole(
            reduction.role_names[i],
            float(of_roles[i]),
            float(z_scores[i]),
            None if counts is None else int(counts[i]),
            None if intervals is None else _interval(intervals[:, i], at),
        )
        for i in np.argsort(-of_roles, kind="stable")
    )


def _known(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(ends_2L: np.ndarray | None, at: int) -> tuple[float, float] | None:
    if ends_2L is None or not np.isfinite(ends_2L[:, at]).all():
        return None
    return float(ends_2L[0, at]), float(ends_2L[1, at])


def filter_note(facts: Mapping[str, Any]) -> str:
    """Say in a sentence which rollouts count.

    Args:
        facts: The facts of a reduction.

    Example:
        >>> filter_note({"role_filter": "scored 3", "judge": "qwen"})
        'Role vectors are means of the rollouts scored 3 by the judge qwen.'
    """
    which, judge = facts.get("role_filter") or facts.get("rollout_filter"), facts.get("judge")
    if which is None:
        return "It is not known which rollouts count."
    if which == "all" and judge:
        return f"Not filtered: every rollout counts, whatever the judge {judge} gave it."
    if which == "all":
        return "No scores are used: every rollout counts, whether or not the model adopted the persona."
    return f"Role vectors are means of the rollouts {which}{f' by the judge {judge}' if judge else ''}."


def notes_of(reduction: Reduction) -> tuple[str, ...]:
    """Say in sentences what is not there: axes and components of layers, vectors of personas, scores of rollouts."""
    notes: list[str] = []
    undefined = {
        "There is no axis": reduction.undefined("axis"),
        "There are no principal components": reduction.undefined("pca"),
        "There are no principal components of traits": reduction.undefined("trait_pca"),
        "There are no principal components of fully and somewhat played roles": reduction.undefined("category_pca"),
    }
    for subject, reasons in undefined.items():
        by_reason: dict[str, list[int]] = {}
        for layer, reason in reasons.items():
            by_reason.setdefault(reason, []).append(layer)
        for reason, layers in by_reason.items():
            place = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
            notes.append(f"{subject} at {place}: {reason}.")
    return (*notes, *unscored_notes(reduction.facts), *left_out_sentences(reduction))


def unscored_notes(facts: Mapping[str, Any]) -> list[str]:
    """Say in a sentence for each kind how much of it the judge has scored, where that is not all.

    Args:
        facts: The facts of a reduction; those of earlier versions do not say it.

    Example:
        >>> unscored_notes({"judge": "qwen", "scored": {"role": [40, 96], "trait": [8, 8]}})
        ['The judge qwen has scored 40 of 96 rollouts of roles; the others have no score and count under none.']
    """
    found: list[str] = []
    for kind, (scored, total) in facts.get("scored", {}).items():
        if kind == "trait" and not scored:
            found.append(f"The judge {facts['judge']} has scored no rollout of a trait: every one of them counts.")
        elif scored < total:
            # Of traits only the vectors over pairs take scores; the other kinds are made of all rollouts.
            effect = "count under none" if kind == "role" else "make no pair that passes"
            found.append(
                f"The judge {facts['judge']} has scored {scored:,} of {total:,} rollouts of {kind}s; the others have "
                f"no score and {effect}."
            )
    return found


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
