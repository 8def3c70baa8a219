"""Import scores from files into a run: all of them, or none if one belongs to no rollout of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import InputError, closest
from ...jobs.files.user_paths import is_directory
from ...jobs.judging.outcomes import JUDGED_KINDS, Outcome
from ...jobs.version import __version__
from ..format.judge_record import JudgeRecord
from ..locations.location import Location
from .given_scores import GivenScore, ScorePlace
from .released_scores import read_released_scores
from .score_strangers import wrong_part
from .score_tables import TABLE_SUFFIXES, read_score_table
from .scores import check_judge_name, read_judge_record, read_outcomes, write_judge_record, write_outcomes

IMPORTED_JUDGE = "released"
"""Name of the judge under which imported scores are kept, unless another is given."""

_LISTED = 10
"""Scores without a rollout that are named."""

_ADDRESS = ["kind", "persona", "polarity", "prompt_index", "question_index", "sample_index"]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        scored: Number of rollouts that have a score of the file.
        unscored: Number of rollouts that the file lists without one, such as REFUSAL.
        replaced: Number of both that had a score, or none, of the judge before.
        not_listed: Number of the run's rollouts that the file does not list.
    """

    scored: int
    unscored: int
    replaced: int
    not_listed: int


def read_given_scores(source: Path, index: pa.Table) -> list[GivenScore]:
    """Read scores: a directory of the released pipeline, or a table.

    Args:
        source: The directory, or a ``.parquet``, ``.csv`` or ``.jsonl`` file.
        index: The index of the run, which tells its traits from its roles.

    Raises:
        InputError: There is no such file, or it cannot be read as scores.
    """
    if is_directory(source, "SOURCE"):
        roles, traits = (set(index.filter(pc.field("kind") == kind)["persona"].to_pylist()) for kind in JUDGED_KINDS)
        return read_released_scores(source, traits - roles)
    if source.suffix not in TABLE_SUFFIXES or not source.is_file():
        what = "is of no format that is read" if source.is_file() else "there is no such file or directory"
        raise InputError(
            f"{what}.",
            code="no_scores",
            file=str(source),
            hint=f"Name a folder of scores of the released pipeline, or a table: {', '.join(TABLE_SUFFIXES)}.",
        )
    return read_score_table(source)


def import_scores(location: Location, index: pa.Table, source: Path, judge: str, at: str = "") -> Imported:
    """Write scores from files into a run. Earlier scores of other rollouts by the same judge stay.

    Args:
        location: The run's store.
        index: The index of its rollouts.
        source: The directory or table of scores.
        judge: Name to keep them under.
        at: The time, for the record of the judge: ISO 8601, in UTC.

    Raises:
        InputError: A score cannot be read or is off its scale, one belongs to no rollout of this run or to several, or
            the name belongs to a judge that is not imported; nothing is written.
        StoreError: An earlier file of scores is damaged.
    """
    check_judge_name(judge, "--judge")
    record = _record(location, judge, source, at)
    given = read_given_scores(source, index)
    rows_of = _rows_of(index)
    _refuse_strangers(given, rows_of, source)
    by_unit: dict[str, list[Outcome]] = {}
    for one in given:
        ((unit_id, row),) = _candidates(one.place, rows_of)
        by_unit.setdefault(unit_id, []).append(Outcome(row, one.score, one.reason))
    judged = set(read_outcomes(location, judge, sorted(by_unit))["row"].to_pylist())
    unit_rows = _unit_rows(index, by_unit)
    write_judge_record(location, record)
    for unit_id, outcomes in sorted(by_unit.items()):
        write_outcomes(location, judge, unit_id, outcomes, unit_rows[unit_id])
    listed = {outcome.row for outcomes in by_unit.values() for outcome in outcomes}
    num_scored = sum(one.score is not None for one in given)
    return Imported(num_scored, len(given) - num_scored, len(judged & listed), index.num_rows - len(listed))


def _record(location: Location, judge: str, source: Path, at: str) -> JudgeRecord:
    known = read_judge_record(location, judge)
    if known is not None and known.source != "import":
        raise InputError(
            f"the judge {judge!r} is {known.model} ({known.source}), and these scores are given.",
            code="other_judge",
            field="--judge",
            hint="Give them another name: --judge NAME.",
        )
    files = dict.fromkeys([*(known.files if known else ()), source.name])
    versions = {"persona-atlas": __version__}
    return JudgeRecord(name=judge, source="import", files=tuple(files), versions=versions, created_at=at)


_Rows = Mapping[ScorePlace, Sequence[tuple[str, int, int, int | None]]]
"""Unit, row, sample and turn of the rollouts of each prompt and question."""


def _rows_of(index: pa.Table) -> _Rows:
    columns = [*_ADDRESS, *(["turn_index"] if "turn_index" in index.column_names else []), "unit_id", "row"]
    found: dict[ScorePlace, list[tuple[str, int, int, int | None]]] = {}
    for line in index.select(columns).to_pylist():
        place = ScorePlace(*(line[name] for name in _ADDRESS[:5]))
        entry = (line["unit_id"], line["row"], line["sample_index"], line.get("turn_index"))
        found.setdefault(place, []).append(entry)
    return found


def _candidates(place: ScorePlace, rows_of: _Rows) -> list[tuple[str, int]]:
    """Return unit and row of the rollouts that a place may mean; one where it is plain."""
    return [
        (unit_id, row)
        for unit_id, row, sample, turn in rows_of.get(ScorePlace(*place[:5]), ())
        if place.sample_index in (None, sample) and place.turn_index in (None, turn)
    ]


def _refuse_strangers(given: Sequence[GivenScore], rows_of: _Rows, source: Path) -> None:
    """Refuse scores that belong to no rollout, or of which it is not plain to which of several."""
    counts = [(one, len(_candidates(one.place, rows_of))) for one in given]
    strangers = [one for one, count in counts if count == 0]
    if strangers:
        first = strangers[0].place
        known = {(place.kind, place.persona) for place in rows_of}
        names = [name for kind, name in known if kind == first.kind]
        suggestion = closest(first.persona, names) if (first.kind, first.persona) not in known else ""
        wrong = wrong_part(first, _places(rows_of))
        raise InputError(
            f"{_listed(strangers, given)} to no rollout of this run. Nothing is imported. {suggestion}".strip(),
            code="no_such_rollout",
            file=_file_of(strangers, source),
            hint=f"Of the first{_first_file(strangers)}: {wrong}. Correct such scores, or take them out.",
        )
    several = [one for one, count in counts if count > 1]
    if several:
        raise InputError(
            f"{_listed(several, given)} to several rollouts of this run, and do not say to which. Nothing is imported.",
            code="several_rollouts",
            file=_file_of(several, source),
            hint="Give a table with the columns sample_index and, for conversations, turn_index.",
        )


def _places(rows_of: _Rows) -> Iterator[ScorePlace]:
    """Yield the addresses of the run's rollouts, with their samples and turns."""
    for place, entries in rows_of.items():
        for _unit_id, _row, sample, turn in entries:
            yield place._replace(sample_index=sample, turn_index=turn)


def _file_of(wrong: Sequence[GivenScore], source: Path) -> str:
    """Return the file that has all the wrong scores; the directory where several have some."""
    files = {one.file for one in wrong}
    return files.pop() if len(files) == 1 else str(source)


def _first_file(wrong: Sequence[GivenScore]) -> str:
    return f" ({PurePath(wrong[0].file).name})" if len({one.file for one in wrong}) > 1 else ""


def _listed(wrong: Sequence[GivenScore], given: Sequence[GivenScore]) -> str:
    shown = ", ".join(str(one.place) for one in wrong[:_LISTED])
    more = f" and {len(wrong) - _LISTED:,} more" if len(wrong) > _LISTED else ""
    verb = "belongs" if len(wrong) == 1 else "belong"
    # Of the files that are named: one of a directory, or all.
    files = {one.file for one in wrong}
    num_given = sum(one.file in files for one in given) if len(files) == 1 else len(given)
    return f"{len(wrong):,} of {num_given:,} scores ({shown}{more}) {verb}"


def _unit_rows(index: pa.Table, unit_ids: Mapping[str, object]) -> dict[str, set[int]]:
    rows: dict[str, set[int]] = {unit_id: set() for unit_id in unit_ids}
    for unit_id, row in zip(index["unit_id"].to_pylist(), index["row"].to_pylist(), strict=True):
        if unit_id in rows:
            rows[unit_id].add(row)
    return rows
