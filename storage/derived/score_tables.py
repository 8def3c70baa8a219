"""Read a table of scores: Parquet, CSV or JSON Lines, a line per rollout with its address and its score."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from ...jobs.errors import InputError
from ...jobs.files.text_files import read_text
from ...jobs.judging.outcomes import SCALES
from ...jobs.machine_faults import refuse_machine_fault
from ...jobs.personas import Kind
from ...jobs.wording import count_of
from ..format.parquet import from_parquet
from .given_scores import GivenScore, ScorePlace, given_score, refuse_faults

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")

_REQUIRED = ("kind", "persona", "polarity", "prompt_index", "question_index", "score")
_OPTIONAL = ("sample_index", "turn_index")
_HINT = f"The columns are {', '.join(_REQUIRED)}, and {' and '.join(_OPTIONAL)} where there are several."


def read_score_table(path: Path) -> list[GivenScore]:
    """Read a table of scores.

    Args:
        path: A ``.parquet``, ``.csv`` or ``.jsonl`` file with the columns ``kind``, ``persona``, ``polarity``,
            ``prompt_index``, ``question_index``, ``score`` and, optionally, ``sample_index`` (0 where it is left out)
            and ``turn_index``. Other columns are ignored.

    Raises:
        InputError: The file cannot be read, a column is missing, a value is wrong, or a rollout is listed twice; names
            the lines.
    """
    scores: dict[ScorePlace, GivenScore] = {}
    faults: list[InputError] = []
    for number, line in _lines(path):
        where = f"line {number}"
        missing = [name for name in _REQUIRED if name not in line]
        if missing:
            raise InputError(f"{where} has no {', '.join(missing)}.", code="bad_scores", file=str(path), hint=_HINT)
        try:
            place = _place(line, where, path)
            if place in scores:
                raise InputError(f"{where} lists {place} again.", code="bad_scores", file=str(path), hint=_HINT)
            value = line["score"]
            written = value.strip() if isinstance(value, str) else ""
            scores[place] = given_score(place, _number(value), f"{where}: the score", str(path), written)
        except InputError as fault:
            faults.append(fault)
    refuse_faults(faults, str(path))
    if not scores:
        raise InputError("holds no score.", code="no_scores", file=str(path), hint=_HINT)
    return list(scores.values())


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the lines of a table with their numbers, as people count them in the file."""
    if path.suffix == ".parquet":
        yield from enumerate(_read_parquet(path), start=1)
        return
    text = read_text(path, "a table of scores")
    if path.suffix == ".csv":
        yield from _csv_lines(text, path)
        return
    # splitlines would also split at separators that are valid within JSON strings, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parse(line, number, path)


def _csv_lines(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text))
    try:
        names = [name.strip() for name in next(reader, [])]
        for values in reader:
            if not values:
                continue
            # A line that was cut off would otherwise look like one with an empty score, and replace a score by none.
            if len(values) != len(names):
                raise InputError(
                    f"line {reader.line_num} has {count_of(len(values), 'value')}, and the first line names "
                    f"{count_of(len(names), 'column')}. Nothing is imported.",
                    code="bad_scores",
                    file=str(path),
                    hint="Give a line as many values as there are columns; an empty value keeps its comma.",
                )
            yield reader.line_num, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise InputError(f"is no CSV: {error}.", code="unreadable_file", file=str(path), hint=_HINT) from None


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        return from_parquet(path.read_bytes()).to_pylist()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError):
            refuse_machine_fault(error)
        raise InputError(
            f"cannot be read as a table of scores: {error}.", code="unreadable_file", file=str(path), hint=_HINT
        ) from None


def _parse(line: str, number: int, path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise InputError(f"line {number} is not JSON: {reason}.", code="not_json", file=str(path), hint=_HINT) from None
    if not isinstance(found, dict):
        raise InputError(f"line {number} is not a JSON object.", code="bad_scores", file=str(path), hint=_HINT)
    return found


def _place(line: Mapping[str, Any], where: str, path: Path) -> ScorePlace:
    kind, persona, polarity = (line[name] for name in ("kind", "persona", "polarity"))
    if kind not in SCALES:
        raise InputError(
            f"{where} has the kind {str(kind)[:40]!r}; scores are of {', '.join(SCALES)}.",
            code="bad_scores",
            file=str(path),
            hint=_HINT,
        )
    sample = _index(line, "sample_index", where, path)
    turn = _index(line, "turn_index", where, path)
    prompt, question = (_index(line, name, where, path) for name in ("prompt_index", "question_index"))
    if prompt is None or question is None:
        raise InputError(
            f"{where} has an empty prompt_index or question_index.", code="bad_scores", file=str(path), hint=_HINT
        )
    return ScorePlace(cast("Kind", kind), str(persona), str(polarity), prompt, question, sample or 0, turn)


def _index(line: Mapping[str, Any], name: str, where: str, path: Path) -> int | None:
    """Read an index; None where it is left out or empty."""
    value = line.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal() and len(value) < 19:
        value = int(value)
    if type(value) is not int or value < 0:
        raise InputError(
            f"{where} has {name} {str(value)[:40]!r}, which is no index.", code="bad_scores", file=str(path), hint=_HINT
        )
    return value


def _number(value: Any) -> Any:
    """Return a score that a CSV file gives as text as a number; empty is none, and other texts stay."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return float(text) if text else None
    except ValueError:
        return text
