"""Judges' scores for small runs, by a rule over addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.query.run import Run

Rule = Callable[[Mapping[str, Any]], float]
"""Score of a line of the index; NaN for none."""


def score_run(run: Run, judge: str, rule: Rule) -> None:
    """Write the scores of every rollout but the default's."""
    by_unit: dict[str, list[Mapping[str, Any]]] = {}
    for line in run.index.to_pylist():
        if line["kind"] != "default":
            by_unit.setdefault(line["unit_id"], []).append(line)
    for unit_id, lines in by_unit.items():
        scores = [rule(line) for line in lines]
        write_scores(run.location, judge, unit_id, [line["row"] for line in lines], scores)
