"""Judges' scores of a run's responses: one Parquet file per judge and unit, so that a run can have several judges."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from ...jobs.errors import InputError, StoreError, closest
from ..format import layout
from ..format.rollout_tables import read_parquet, to_parquet
from ..locations.location import Location

SCORE_SCHEMA = pa.schema([("row", pa.int64()), ("score", pa.float32())])
"""One line per judged rollout; the score is null where the judge gave none that could be parsed."""

_PARALLEL_READS = 32


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
    if not judge.strip(".") or not all(c.isalnum() or c in "._-" for c in judge):
        raise InputError(f"{judge!r} cannot be a judge's name.", code="bad_judge", field="judge", hint="Use a-z, 0-9.")
    numbers = np.asarray(scores, dtype=np.float32)
    table = pa.table([pa.array(rows, pa.int64()), pa.array(numbers, mask=np.isnan(numbers))], schema=SCORE_SCHEMA)
    location.write(layout.scores_path(judge, unit_id), to_parquet(table))


def judges(location: Location) -> list[str]:
    """List the names of the judges that have scored the run, sorted."""
    return sorted({PurePosixPath(path).parts[1] for path in location.sizes(layout.SCORES)})


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
    known = judges(location)
    if not known:
        raise InputError(
            "no judge has scored this run, so there are no scores to select by.",
            code="no_scores",
            field=field,
            hint="Query without filters on scores; write_scores (storage/derived/scores.py) stores those of a judge.",
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

    def read(unit_id: str) -> pa.Table:
        path = layout.scores_path(name, unit_id)
        table = read_parquet(location, path, SCORE_SCHEMA)
        # A missing file means not judged yet. A damaged one is an error: unlike the index, scores are stored only here.
        if table is None and location.size(path) is not None:
            raise StoreError(
                f"the scores of unit {unit_id} cannot be read.",
                code="bad_object",
                file=f"{location.url}/{path}",
                hint="Let the judge score the unit again.",
            )
        return table if table is not None else SCORE_SCHEMA.empty_table()

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        tables = list(pool.map(read, index["unit_id"].unique().to_pylist()))
    table = pa.concat_tables([SCORE_SCHEMA.empty_table(), *tables])
    score_of = dict(zip(table["row"].to_pylist(), table["score"].to_pylist(), strict=True))
    return index.append_column("score", pa.array([score_of.get(row) for row in index["row"].to_pylist()], pa.float32()))
