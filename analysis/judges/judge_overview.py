"""What the judges of a run have said: how many rollouts they cover, their scores, and how far they agree."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import InputError, closest
from ...jobs.judging.outcomes import JUDGED_KINDS
from ...jobs.personas import Kind
from ...storage.derived.scores import read_judge_record, read_outcomes, scored_units
from ...storage.format.judge_record import JudgeRecord
from ...storage.query.run import Run
from .agreement import BINS, Agreement, agreement, categories


@dataclass(frozen=True, eq=False)
class JudgeOverview:
    """What one judge has said of the responses of roles and traits.

    Attributes:
        name: Name of the judge.
        record: What it is; None where that is not recorded.
        rollouts: Number of responses that it should judge: those of roles and traits that are not empty.
        scored: Number that it has scored.
        unscored: Number that it was asked about and has no score of.
        reasons: That number by reason.
        distribution: Number of scores by kind and category (``BINS``).
        scores: float64 ``(N,)`` by row of each rollout with a score, by kind.
    """

    name: str
    record: JudgeRecord | None
    rollouts: int
    scored: int
    unscored: int
    reasons: dict[str, int]
    distribution: dict[Kind, dict[str, int]]
    scores: dict[Kind, dict[int, float]]

    @property
    def left(self) -> int:
        """Number of responses that it was not asked about yet."""
        return self.rollouts - self.scored - self.unscored

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        record = self.record
        return {
            "name": self.name,
            "source": record.source if record else None,
            "model": record.model if record else None,
            "endpoint": record.endpoint if record else None,
            "rollouts": self.rollouts,
            "scored": self.scored,
            "unscored": self.unscored,
            "left": self.left,
            "reasons": self.reasons,
            "distribution": self.distribution,
        }


def judge_overviews(run: Run, names: Sequence[str] = ()) -> list[JudgeOverview]:
    """Collect what judges have said of a run, in the order of their names.

    Args:
        run: The run.
        names: The judges; empty for all.

    Raises:
        InputError: A judge of that name has not scored the run.
        StoreError: A file of scores, or the record of a judge, is damaged.
    """
    units = scored_units(run.location)
    for name in names:
        if name not in units:
            raise InputError(
                f"no judge {name!r} has scored the run. {closest(name, units)}".strip(),
                code="no_such_judge",
                field="--judge",
                hint=f"There are {', '.join(sorted(units))}." if units else "Score it with persona-atlas judge.",
            )
    index = run.index
    judged = index.filter(pc.field("kind").isin(pa.array(JUDGED_KINDS)) & pc.field("has_vector"))
    return [_overview(run, name, units[name], judged) for name in sorted(names or units)]


def _overview(run: Run, name: str, units: set[str], judged: pa.Table) -> JudgeOverview:
    committed = sorted(units & set(judged["unit_id"].unique().to_pylist()))
    found = read_outcomes(run.location, name, committed)
    kind_of = dict(zip(judged["row"].to_pylist(), judged["kind"].to_pylist(), strict=True))
    scores: dict[Kind, dict[int, float]] = {kind: {} for kind in JUDGED_KINDS}
    reasons: Counter[str] = Counter()
    columns = (found[column].to_pylist() for column in ("row", "score", "reason"))
    for row, score, reason in zip(*columns, strict=True):
        if row not in kind_of:
            continue
        if score is None:
            reasons[reason or "not_given"] += 1
        else:
            scores[cast("Kind", kind_of[row])][row] = score
    distribution: dict[Kind, dict[str, int]]
    distribution = {kind: _distribution(kind, list(of_kind.values())) for kind, of_kind in scores.items() if of_kind}
    num_scored = sum(map(len, scores.values()))
    record = read_judge_record(run.location, name)
    num_unscored = reasons.total()
    return JudgeOverview(
        name, record, judged.num_rows, num_scored, num_unscored, dict(sorted(reasons.items())), distribution, scores
    )


def _distribution(kind: Kind, scores: Sequence[float]) -> dict[str, int]:
    # Scores that were stored without a check may be off the scale; they are counted at its ends.
    places = np.clip(categories(kind, scores), 0, len(BINS[kind]) - 1)
    counts = np.bincount(places, minlength=len(BINS[kind]))
    return {label: int(count) for label, count in zip(BINS[kind], counts, strict=True)}


@dataclass(frozen=True, eq=False)
class PairOverview:
    """How far two judges agree.

    Attributes:
        judges: Their names.
        by_kind: Their agreement by kind, over the rollouts that both have scored; kinds without one are left out.
    """

    judges: tuple[str, str]
    by_kind: dict[Kind, Agreement]

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints; what is undefined is null."""
        return {
            "judges": list(self.judges),
            **{
                kind: {
                    "rollouts": found.rollouts,
                    "weighted_kappa": _finite(found.weighted_kappa),
                    "correlation": _finite(found.correlation),
                    "mean_absolute_difference": _finite(found.mean_absolute_difference),
                    "categories": list(BINS[kind]),
                    "confusion": found.confusion.tolist(),
                }
                for kind, found in self.by_kind.items()
            },
        }


def pair_overviews(overviews: Sequence[JudgeOverview]) -> list[PairOverview]:
    """Compare every two judges.

    Args:
        overviews: The judges of one run.
    """
    return [_pair(first, second) for first, second in itertools.combinations(overviews, 2)]


def _pair(first: JudgeOverview, second: JudgeOverview) -> PairOverview:
    by_kind: dict[Kind, Agreement] = {}
    for kind in JUDGED_KINDS:
        a, b = first.scores[kind], second.scores[kind]
        rows = sorted(a.keys() & b.keys())
        if rows:
            highest = 3 if kind == "role" else 100
            pairs = np.clip([[a[row], b[row]] for row in rows], 0, highest)
            by_kind[kind] = agreement(kind, pairs[:, 0], pairs[:, 1])
    return PairOverview((first.name, second.name), by_kind)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
