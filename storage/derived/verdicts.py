"""Verdicts on replies: the label of each, one Parquet file per rubric, judge, run and unit.

Those of a sweep lie in its folder beside the runs of the settings, those of a single run in its store. Neither lies
among the scores: a label is no score, and nothing that selects or reduces by scores may take one for a score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import pyarrow as pa

from ...jobs.errors import StoreError
from ...jobs.judging.outcomes import Outcome
from ..format.judge_record import JudgeRecord, parse_judge_record
from ..format.layout import VERDICTS, verdict_folder
from ..format.parquet import from_parquet, to_parquet
from ..format.sweep_record import SWEEP_RECORD, SWEEP_VERSION, SweepRecord
from ..format.versioned import read_versioned
from ..locations.location import Location

VERDICT_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("label", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("reply", pa.string()),
        ("asks", pa.int32()),
    ]
)
"""One line per reply that was judged, by its row in its run. The label is null where the judge gave none
that can be read; then ``reason`` says why, as for scores."""

_LONGEST_REPLY = 2000
_PARALLEL_READS = 32


def read_sweep_record(location: Location) -> SweepRecord | None:
    """Read the record of a sweep; None where there is none.

    Args:
        location: The folder of the sweep.

    Raises:
        StoreError: The record is damaged, or of a newer version.
    """
    return read_versioned(location, SWEEP_RECORD, SweepRecord, SWEEP_VERSION, "the sweep has")


def verdict_judges(location: Location, rubric: str) -> list[str]:
    """List the judges that have given labels by a rubric, sorted.

    Args:
        location: The folder of a sweep, or the store of a run.
        rubric: Name of the rubric.
    """
    paths = map(PurePosixPath, location.sizes(f"{VERDICTS}/{rubric}"))
    return sorted({path.parts[2] for path in paths if len(path.parts) > 3})


def read_verdict_record(location: Location, rubric: str, judge: str) -> JudgeRecord | None:
    """Read who judged by a rubric under a name; None where nobody did.

    Raises:
        StoreError: The record is damaged.
    """
    path = f"{verdict_folder(rubric, judge)}/judge.json"
    data = location.read(path)
    return None if data is None else parse_judge_record(data, f"{location.url}/{path}")


def write_verdict_record(location: Location, rubric: str, record: JudgeRecord) -> None:
    """Write who judges by a rubric, and replace the earlier record of that name."""
    location.write(f"{verdict_folder(rubric, record.name)}/judge.json", record.to_bytes())


def write_verdicts(
    location: Location,
    folder: str,
    unit_id: str,
    outcomes: Iterable[Outcome],
    labels: Sequence[str],
    unit_rows: Collection[int],
) -> None:
    """Add verdicts on replies of a unit; earlier verdicts on its other replies stay.

    Args:
        location: The folder of a sweep, or the store of a run.
        folder: Folder of a judge's verdicts on one run.
        unit_id: Id of the unit.
        outcomes: The outcomes; the score of each is the place of its label.
        labels: The labels of the rubric.
        unit_rows: Rows of the unit's replies. Lines of other rows, of an attempt that was withdrawn, are dropped.

    Raises:
        StoreError: The file with the earlier verdicts is damaged.
    """
    lines = {
        outcome.row: {
            "row": outcome.row,
            "label": None if outcome.score is None else labels[int(outcome.score)],
            "reason": outcome.reason,
            "detail": outcome.detail or None,
            "reply": None if outcome.reply is None else outcome.reply[:_LONGEST_REPLY],
            "asks": outcome.asks,
        }
        for outcome in outcomes
    }
    earlier = _read(location, folder, unit_id).to_pylist()
    lines = {line["row"]: line for line in earlier if line["row"] in unit_rows} | lines
    table = pa.Table.from_pylist([lines[row] for row in sorted(lines)], schema=VERDICT_SCHEMA)
    location.write(_path(folder, unit_id), to_parquet(table))


def read_verdicts(location: Location, folder: str, unit_ids: Iterable[str]) -> pa.Table:
    """Read the verdicts on the replies of some units.

    Args:
        location: The folder of a sweep, or the store of a run.
        folder: Folder of a judge's verdicts on one run.
        unit_ids: Ids of the units; those that were not judged have no lines.

    Returns:
        A table of ``VERDICT_SCHEMA``.

    Raises:
        StoreError: A file is damaged.
    """
    there = {PurePosixPath(name).stem for name in location.names(folder)}
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        tables = list(
            pool.map(lambda unit_id: _read(location, folder, unit_id), [one for one in unit_ids if one in there])
        )
    return pa.concat_tables([VERDICT_SCHEMA.empty_table(), *tables])


def _path(folder: str, unit_id: str) -> str:
    return f"{folder}/{unit_id}.parquet"


def parse_verdicts(data: bytes) -> pa.Table | None:
    """Read a file of verdicts; None where it is none.

    Args:
        data: Bytes of the file.
    """
    try:
        return from_parquet(data).select(VERDICT_SCHEMA.names).cast(VERDICT_SCHEMA)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def _read(location: Location, folder: str, unit_id: str) -> pa.Table:
    data = location.read(_path(folder, unit_id))
    if data is None:
        return VERDICT_SCHEMA.empty_table()
    verdicts = parse_verdicts(data)
    if verdicts is None:
        raise StoreError(
            f"the verdicts on unit {unit_id} cannot be read.",
            code="bad_object",
            file=f"{location.url}/{_path(folder, unit_id)}",
            hint="Delete the file, and let the judge judge the unit again.",
        )
    return verdicts
