"""Take the scores of the responses of one run over into another run of the same responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ...jobs.judging.outcomes import Outcome
from ..format.judge_record import JudgeRecord
from ..locations.location import Location
from .scores import (
    OUTCOME_SCHEMA,
    read_judge_record,
    read_outcomes,
    scored_units,
    write_judge_record,
    write_outcomes,
)

_ADDRESS = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")

_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class CopiedScores:
    """The scores of one judge that were taken over.

    Attributes:
        judge: Name of the judge.
        num_copied: Number of rollouts whose outcome, a score or the reason why there is none, is in the other run now.
        is_other: Whether another judge of that name, or one with another text of a rubric, has scored the other run, so
            that nothing was taken over.
    """

    judge: str
    num_copied: int
    is_other: bool = False


def copy_scores(
    source: Location, source_index: pa.Table, target: Location, target_index: pa.Table
) -> list[CopiedScores]:
    """Copy what every judge said about the rollouts of a run to the rollouts with the same addresses in another run.

    The responses are the same texts, so the record of the judge is copied as it is, and outcomes keep their replies.

    Args:
        source: Store of the run that was scored.
        source_index: Index of its rollouts.
        target: Store of the other run.
        target_index: Index of its rollouts.

    Returns:
        For each judge of the first run what was copied.

    Raises:
        StoreError: A file of scores or a record of a judge is damaged.
    """
    place_of = dict(zip(_keys(target_index), zip(*_columns(target_index), strict=True), strict=True))
    unit_rows: dict[str, set[int]] = {}
    for unit_id, row in place_of.values():
        unit_rows.setdefault(unit_id, set()).add(row)
    places = {
        row: place_of[key]
        for key, row in zip(_keys(source_index), source_index["row"].to_pylist(), strict=True)
        if key in place_of
    }
    return [
        _copy(source, sorted(units), target, judge, places, unit_rows)
        for judge, units in sorted(scored_units(source).items())
    ]


def _copy(
    source: Location,
    units: list[str],
    target: Location,
    judge: str,
    places: dict[int, tuple[str, int]],
    unit_rows: dict[str, set[int]],
) -> CopiedScores:
    record, known = read_judge_record(source, judge), read_judge_record(target, judge)
    if known is not None:
        record = _agreed(known, record)
        if record is None:
            return CopiedScores(judge, 0, is_other=True)
    by_unit: dict[str, list[Outcome]] = {}
    for line in read_outcomes(source, judge, units).to_pylist():
        if line["row"] in places:
            unit_id, row = places[line["row"]]
            by_unit.setdefault(unit_id, []).append(_outcome(line, row))
    if record is not None and record != known and by_unit:
        write_judge_record(target, record)
    for unit_id, outcomes in sorted(by_unit.items()):
        # A run that is concluded again has most of them already.
        there = read_outcomes(target, judge, [unit_id]).select(["row", "score"]).to_pylist()
        if {line["row"]: line["score"] for line in there} != {one.row: one.score for one in outcomes}:
            write_outcomes(target, judge, unit_id, outcomes, unit_rows[unit_id])
    return CopiedScores(judge, sum(map(len, by_unit.values())))


def _agreed(known: JudgeRecord, record: JudgeRecord | None) -> JudgeRecord | None:
    """Return the record of a judge with the rubrics of both runs; None where it is not the same judge.

    A judge that goes on gains rubrics, since it has one for each persona.
    """
    if record is None or any(known.rubrics.get(name, digest) != digest for name, digest in record.rubrics.items()):
        return None
    rubrics = dict(sorted((known.rubrics | record.rubrics).items()))
    both = known.model_copy(update={"rubrics": rubrics})
    return both if both == record.model_copy(update={"rubrics": rubrics}) else None


def _outcome(line: dict[str, Any], row: int) -> Outcome:
    said = {name: line[name] for name in OUTCOME_SCHEMA.names if line[name] is not None}
    return Outcome(**(said | {"row": row, "score": line["score"], "reason": line["reason"]}))


def _columns(index: pa.Table) -> tuple[list[str], list[int]]:
    return index["unit_id"].to_pylist(), index["row"].to_pylist()


def _keys(index: pa.Table) -> list[_Key]:
    """Return the address of each row; the single response to a question is turn 1."""
    columns = [index[name].to_pylist() for name in _ADDRESS]
    turns = index["turn_index"].to_pylist() if "turn_index" in index.column_names else [1] * index.num_rows
    return list(zip(*columns, turns, strict=True))
