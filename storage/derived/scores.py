"""Judges' scores of a run's responses: one Parquet file per judge and unit, so that a run can have several judges.

A file has a line per rollout that was judged. A rollout without a line was not judged yet; one whose score is null was,
and has none. Scores of given or older files have no columns but row and score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from ...jobs.errors import InputError, StoreError, closest
from ...jobs.judging.outcomes import Outcome
from ..format import layout
from ..format.judge_record import JudgeRecord, parse_judge_record
from ..format.parquet import from_parquet, to_parquet
from ..locations.location import Location

SCORE_SCHEMA = pa.schema([("row", pa.int64()), ("score", pa.float32())])
"""The columns that every file has. One line per judged rollout; the score is null where the judge gave none."""

OUTCOME_SCHEMA = pa.schema(
    [
        *SCORE_SCHEMA,
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("reply", pa.string()),
        ("asks", pa.int32()),
    ]
)
"""The columns of files with what the judge said: why there is no score (null where there is one), the reason in a few
words, the last reply, and how often the judge was asked. Null in files that lack them."""

_LONGEST_REPLY = 2000
"""Characters of a reply that are kept: a judge that was asked for a number may write an essay."""

NO_JUDGE = "none"
"""What a reduction is asked for to use no scores; no judge may have this name."""

_PARALLEL_READS = 32


def check_judge_name(judge: str, field: str = "judge") -> None:
    """Refuse what cannot be the name of a judge, because it is the name of a folder.

    Args:
        judge: The name: letters, digits, dots, dashes and underscores.
        field: The option that holds it, for the error.

    Raises:
        InputError: The name has other characters, or dots only, or is ``NO_JUDGE``.
    """
    if judge == NO_JUDGE or not judge.strip(".") or not all(c.isalnum() or c in "._-" for c in judge):
        raise InputError(
            f"{judge!r} cannot be a judge's name.",
            code="bad_judge",
            field=field,
            hint=f"Use letters, digits, dots, dashes and underscores; {NO_JUDGE} stands for no judge.",
        )


def write_scores(location: Location, judge: str, unit_id: str, rows: Sequence[int], scores: Sequence[float]) -> None:
    """Write a judge's scores of one unit, and replace its earlier ones.

    Args:
        location: The run's store.
        judge: Name of the judge: letters, digits, dots, dashes and underscores.
        unit_id: Id of the unit.
        rows: Rows of the unit's rollouts in the activation arrays.
        scores: One score per row; NaN for none.

    Raises:
        InputError: The name has other characters, or dots only.
    """
    check_judge_name(judge)
    numbers = np.asarray(scores, dtype=np.float32)
    table = pa.table([pa.array(rows, pa.int64()), pa.array(numbers, mask=np.isnan(numbers))], schema=SCORE_SCHEMA)
    location.write(layout.scores_path(judge, unit_id), to_parquet(table))


def write_outcomes(
    location: Location, judge: str, unit_id: str, outcomes: Iterable[Outcome], unit_rows: Collection[int]
) -> None:
    """Add what a judge said about rollouts of a unit; earlier outcomes of its other rollouts stay.

    Args:
        location: The run's store.
        judge: Name of the judge.
        unit_id: Id of the unit.
        outcomes: The outcomes; one for a rollout that has one already replaces it.
        unit_rows: Rows of the unit's rollouts. Lines of other rows, of an attempt that was withdrawn, are dropped.

    Raises:
        InputError: The name cannot be a judge's.
        StoreError: The file with the earlier outcomes is damaged.
    """
    check_judge_name(judge)
    lines = {
        outcome.row: {
            "row": outcome.row,
            "score": outcome.score,
            "reason": outcome.reason,
            "detail": outcome.detail or None,
            "reply": None if outcome.reply is None else outcome.reply[:_LONGEST_REPLY],
            "asks": outcome.asks,
        }
        for outcome in outcomes
    }
    earlier = _read(location, judge, unit_id, OUTCOME_SCHEMA).to_pylist()
    lines = {line["row"]: line for line in earlier if line["row"] in unit_rows} | lines
    table = pa.Table.from_pylist([lines[row] for row in sorted(lines)], schema=OUTCOME_SCHEMA)
    location.write(layout.scores_path(judge, unit_id), to_parquet(table))


def judges(location: Location) -> list[str]:
    """List the names of the judges that have scored the run, sorted."""
    return sorted(scored_units(location))


def scored_units(location: Location) -> dict[str, set[str]]:
    """Return the ids of the units that each judge has scored, by its name."""
    found: dict[str, set[str]] = {}
    for path in map(PurePosixPath, location.sizes(layout.SCORES)):
        if path.suffix == ".parquet" and len(path.parts) == 3:
            found.setdefault(path.parts[1], set()).add(path.name.removesuffix(".parquet"))
    return found


def read_judge_record(location: Location, judge: str) -> JudgeRecord | None:
    """Read the record of a judge; None where there is none, as of scores that older versions imported.

    Raises:
        StoreError: The record is damaged.
    """
    path = layout.judge_path(judge)
    data = location.read(path)
    return None if data is None else parse_judge_record(data, f"{location.url}/{path}")


def write_judge_record(location: Location, record: JudgeRecord) -> None:
    """Write the record of a judge, and replace its earlier one."""
    location.write(layout.judge_path(record.name), record.to_bytes())


def chosen_judge(location: Location, judge: str | None, field: str = "judge") -> str:
    """Return the judge that is meant: the one that is named, or the only one.

    Args:
        location: The run's store.
        judge: Its name; None for the only one that has scored the run.
        field: The filter that asks for scores, for the error when there are none.

    Raises:
        InputError: No judge has scored the run, this one has not, or there are several and ``judge`` is None.
    """
    known = judges(location)
    if not known:
        raise InputError(
            "no judge has scored this run, so there are no scores to select by.",
            code="no_scores",
            field=field,
            hint="Query without filters on scores, or score it with persona-atlas judge or scores import.",
        )
    if judge == NO_JUDGE:
        raise InputError(
            f"{NO_JUDGE} stands for no judge, and there are no scores to select by.",
            code="no_such_judge",
            field="judge",
            hint=f"Leave the judge and the bounds of scores out, or name {', '.join(known)}.",
        )
    if judge is None and len(known) > 1:
        raise InputError(
            "several judges have scored the run.", code="which_judge", field="judge", hint=f"Name {', '.join(known)}."
        )
    name = judge or known[0]
    if name not in known:
        raise InputError(
            f"no judge {name!r} has scored the run. {closest(name, known)}".strip(),
            code="no_such_judge",
            field="judge",
            hint=f"There are {', '.join(known)}.",
        )
    return name


def read_outcomes(location: Location, judge: str, unit_ids: Iterable[str]) -> pa.Table:
    """Read what a judge said about the rollouts of some units.

    Args:
        location: The run's store.
        judge: Name of the judge.
        unit_ids: Ids of the units; those that it has not judged have no lines.

    Returns:
        A table of ``OUTCOME_SCHEMA``, one line per judged rollout.

    Raises:
        StoreError: A file of scores is damaged.
    """
    return _read_units(location, judge, unit_ids, OUTCOME_SCHEMA)


def with_scores(location: Location, index: pa.Table, judge: str | None, field: str = "judge") -> pa.Table:
    """Add a column ``score`` to index lines, null where the judge gave none.

    Args:
        location: The run's store.
        index: Lines of the index; only scores of their units are read.
        judge: Name of the judge; None for the only one that has scored the run.
        field: The filter that asks for scores, for the error when there are none.

    Raises:
        InputError: No judge has scored the run, this one has not, or there are several and ``judge`` is None.
        StoreError: A file of scores is damaged.
    """
    name = chosen_judge(location, judge, field)
    table = _read_units(location, name, index["unit_id"].unique().to_pylist(), SCORE_SCHEMA)
    score_of = dict(zip(table["row"].to_pylist(), table["score"].to_pylist(), strict=True))
    return index.append_column("score", pa.array([score_of.get(row) for row in index["row"].to_pylist()], pa.float32()))


def _read_units(location: Location, judge: str, unit_ids: Iterable[str], schema: pa.Schema) -> pa.Table:
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        tables = list(pool.map(lambda unit_id: _read(location, judge, unit_id, schema), unit_ids))
    return pa.concat_tables([schema.empty_table(), *tables])


def _read(location: Location, judge: str, unit_id: str, schema: pa.Schema) -> pa.Table:
    """Read the file of one unit; empty where there is none, which means that it was not judged yet."""
    path = layout.scores_path(judge, unit_id)
    data = location.read(path)
    if data is None:
        return schema.empty_table()
    table = parse_scores(data, schema)
    if table is None:
        # Unlike the index, scores are stored only here, so that damage must not be taken for none given.
        raise StoreError(
            f"the scores of unit {unit_id} cannot be read.",
            code="bad_object",
            file=f"{location.url}/{path}",
            hint="Delete the file, and let the judge score the unit again.",
        )
    return table


def parse_scores(data: bytes, schema: pa.Schema = OUTCOME_SCHEMA) -> pa.Table | None:
    """Decode a file of scores; None where it is damaged.

    Args:
        data: The file.
        schema: The columns to return; those that the file lacks, of what the judge said, are null.
    """
    try:
        table = from_parquet(data)
        for name in schema.names:
            if name not in SCORE_SCHEMA.names and name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
