"""Where the numbers of a report come from: model, run, completeness, filter, versions, responses behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...jobs.wording import count_of
from ...jobs.work.rollouts import served_text
from ...storage.derived.reductions import Reduction
from ...storage.query.query import nearest_layer
from ...storage.query.run import Run
from .samples import Key, Sample, descriptions_of, samples_of


@dataclass(frozen=True, eq=False)
class Origin:
    """What a report says of the run behind a reduction.

    Attributes:
        model: Name of the model, for the title.
        lines: Facts about where the numbers come from, by name.
        lead: A sentence below the title.
        notes: Sentences on texts that were not taken as they are.
        start_layer: Layer at which the report opens.
        n_layers: Number of layers of the model; None where it is not known.
        num_questions: Number of questions that were asked; None where it is not known.
        counts: Number of rollouts with a vector by kind, name and polarity.
        kinds_N: Kind of the rollout of every projection; None where it is not known.
        descriptions: Descriptions of personas by kind and name.
        samples: Some responses of each persona by kind and name.
    """

    model: str
    lines: Mapping[str, str]
    lead: str
    notes: tuple[str, ...]
    start_layer: int
    n_layers: int | None = None
    num_questions: int | None = None
    counts: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    kinds_N: npt.NDArray[np.str_] | None = None
    descriptions: Mapping[Key, str] = field(default_factory=dict)
    samples: Mapping[Key, list[Sample]] = field(default_factory=dict)


def origin_of_run(run: Run, reduction: Reduction) -> Origin:
    """Collect what a report says of a run.

    Args:
        run: The run; some tables of its texts are read.
        reduction: A reduction of it.

    Raises:
        StoreError: A committed table is missing or damaged.
    """
    spec, record = run.record.spec, run.record
    units = f"{reduction.facts.get('units', '?')} of {count_of(record.num_units, 'unit')}"
    lines = {
        "model": spec.model.source,
        "model files": record.model.fingerprint[:16],
        "store": run.url,
        "units reduced": units,
        "layers": f"{len(run.layers)} captured of {record.model.n_layers}",
        "sampling": f"temperature {spec.sampling.temperature:g}, top-p {spec.sampling.top_p:g}, "
        f"at most {count_of(spec.sampling.max_new_tokens, 'token')}",
        "empty responses": f"{run.num_empty_responses:,}",
        **_of_reduction(reduction),
        "plan": record.plan_digest[:16],
        "run created": record.created_at,
        **({"server's tokens": served_text(run.served_tokens)} if run.served_tokens else {}),
        **{name: value for name, value in record.versions.items() if value},
    }
    edits = [] if record.interventions is None else list(map(str, record.interventions.entries))
    if edits:
        lines["interventions"] = "; ".join(edits)
    concerned: dict[str, int] = record.rendering.get("rows", {})
    under = f" Made under {count_of(len(edits), 'intervention')}: {'; '.join(edits)}." if edits else ""
    return Origin(
        model=spec.model.display_name,
        lines=lines,
        lead=f"{count_of(int(reduction.facts.get('rollouts', 0)), 'rollout')} at "
        f"{count_of(len(reduction.layers), 'layer')}, pooled by {reduction.facts.get('pooling', 'an unknown rule')}."
        f"{under}",
        notes=tuple(
            f"{name.replace('_', ' ')}: {count_of(rows, 'row')} (docs/engine.md)." for name, rows in concerned.items()
        ),
        start_layer=run.middle_layer if run.middle_layer in reduction.layers else _middle(reduction),
        n_layers=record.model.n_layers,
        num_questions=len(run.index["question_index"].unique()),
        counts=_counts(run),
        kinds_N=_kinds(run, reduction),
        descriptions=descriptions_of(run),
        samples=samples_of(run, reduction),
    )


def origin_of_vectors(
    reduction: Reduction,
    model: str = "an unnamed model",
    store: str = "",
    *,
    n_layers: int | None = None,
    lines: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Origin:
    """Describe a reduction that has no run, as one of imported vectors.

    Args:
        reduction: The reduction.
        model: Name of the model, for the title.
        store: Where the reduction is kept; empty if nowhere.
        n_layers: Number of layers of the model; None where it is not known.
        lines: More facts about where the vectors come from.
        notes: Sentences about what the vectors lack.
    """
    where = {"model": model, **({"store": store} if store else {}), **(lines or {}), **_of_reduction(reduction)}
    lead = f"Vectors at {count_of(len(reduction.layers), 'layer')}, without the responses that they were made of."
    middle = _middle(reduction) if n_layers is None else nearest_layer(reduction.layers, n_layers // 2)
    return Origin(model, where, lead, tuple(notes), middle, n_layers)


_FACTS = {
    "hook_point": "hook point",
    "pooling": "pooling",
    "judge": "judge",
    "role_filter": "rollouts of roles that count",
    "rollout_filter": "rollouts that count",
    "min_count": "rollouts that a role needs",
    "trait_kind": "kind of trait vectors",
    "halves": "halves of the questions",
    "source": "source",
}


def _of_reduction(reduction: Reduction) -> dict[str, str]:
    facts = {label: str(reduction.facts[name]) for name, label in _FACTS.items() if reduction.facts.get(name)}
    if "judge" not in facts:
        # Without a judge every rollout counts; where others count, somebody chose them in a way that is not recorded.
        facts["judge"] = "none" if reduction.facts.get("role_filter", "all") == "all" else "not known"
    if facts.get(_FACTS["role_filter"]) == facts.get(_FACTS["rollout_filter"]):
        facts.pop(_FACTS["rollout_filter"], None)
    return {**facts, "reduction": reduction.reduction_id}


def _middle(reduction: Reduction) -> int:
    return reduction.layers[len(reduction.layers) // 2]


def _counts(run: Run) -> dict[tuple[str, str, str], int]:
    lines = run.with_vector(run.index).group_by(["kind", "persona", "polarity"]).aggregate([([], "count_all")])
    return {(line["kind"], line["persona"], line["polarity"]): line["count_all"] for line in lines.to_pylist()}


def _kinds(run: Run, reduction: Reduction) -> npt.NDArray[np.str_] | None:
    if reduction.projection_rows is None:
        return None
    rows = run.index["row"].to_numpy()
    order = np.argsort(rows)
    kinds = np.asarray(run.index["kind"].to_numpy(zero_copy_only=False), dtype=str)
    places = np.minimum(np.searchsorted(rows, reduction.projection_rows, sorter=order), len(rows) - 1)
    matched = rows[order[places]] == reduction.projection_rows
    # A unit that was deleted after the reduction leaves projections without a line in the index.
    return np.where(matched, kinds[order[places]], "rollout")
