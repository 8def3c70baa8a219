"""Judges' scores beside a run: one small file a judge and unit, so that several judges can differ side by side."""

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
"""A line a judged rollout; the score is null where the judge gave none that could be read."""

_PARALLEL_READS = 32


def write_scores(location: Location, judge: str, unit_id: str, rows: Sequence[int], scores: Sequence[float]) -> None:
    """Keep what a judge says of one unit; over what it said before.

    Args:
        location: The run's store.
        judge: Its name: letters, digits, dots, dashes and underscores.
        unit_id: The unit.
        rows: Rows of its rollouts.
        scores: One a row; NaN for none.

    Raises:
        InputError: The name is none that a folder could have.
    """
    if not judge.strip(".") or not all(c.isalnum() or c in "._-" for c in judge):
        raise InputError(f"{judge!r} cannot be a judge's name.", code="bad_judge", field="judge", hint="Use a-z, 0-9.")
    numbers = np.asarray(scores, dtype=np.float32)
    table = pa.table([pa.array(rows, pa.int64()), pa.array(numbers, mask=np.isnan(numbers))], schema=SCORE_SCHEMA)
    location.write(layout.scores_path(judge, unit_id), to_parquet(table))


def judges(location: Location) -> list[str]:
    """Name the judges that have scores here."""
    return sorted({PurePosixPath(path).parts[1] for path in location.sizes(layout.SCORES)})


def with_scores(location: Location, index: pa.Table, judge: str | None) -> pa.Table:
    """Add a column ``score`` to index lines, null where the judge gave none.

    Args:
        location: The run's store.
        index: Lines to judge; only their units' files are read.
        judge: Whose; None for the only one there is.

    Raises:
        InputError: Nobody has judged the run, not this judge, or several and none was named.
        StoreError: A file of scores is damaged.
    """
    known = judges(location)
    if not known:
        raise InputError(
            "the run has no judge's scores.", code="no_scores", field="min_score", hint="Ask without bounds on scores."
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
        # What is not there was not judged; nothing else holds what a damaged file held.
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
