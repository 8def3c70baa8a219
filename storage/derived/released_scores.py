"""Import the scores of the released pipeline: a JSON file per persona, with ``<label>_p<prompt>_q<question>`` as keys.

The keys name a prompt and a question and no sample. Where a run has several rollouts of one question, such a score is
given to none of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...jobs.errors import InputError, closest
from ...jobs.files.text_files import read_text
from ...jobs.personas import DEFAULT_PERSONA
from ..locations.location import Location
from .scores import write_scores

RELEASED_JUDGE = "released"
"""Name of the judge under which imported scores are kept, unless another is given."""

_KEY = re.compile(r"(pos|neg|default)_p(\d{1,9})_q(\d{1,9})")
_HINT = 'A file is a persona, as pirate.json: {"pos_p0_q0": 3, "pos_p0_q1": 1}.'

_Place = tuple[str, str, str, int, int]
"""Kind, persona, polarity, prompt_index and question_index of a rollout."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        scored: Number of rollouts that have a score now.
        unscored: Number of the run's rollouts without one.
        unused: Number of scores for rollouts that the run does not have.
        ambiguous: Number of scores that were given to no rollout, because the run has several of that question.
    """

    scored: int
    unscored: int
    unused: int
    ambiguous: int


def read_released_scores(directory: Path) -> dict[_Place, float]:
    """Read the scores of a directory of the released pipeline.

    Args:
        directory: A directory with a ``.json`` file per persona; ``default.json`` is the default Assistant.

    Returns:
        The scores by kind (a file with the label neg is a trait), persona, polarity, prompt and question.

    Raises:
        InputError: There is no such file, or one is not in this layout; names the file and the key.
    """
    files = sorted(path for path in directory.glob("*.json") if not path.name.startswith("."))
    if not files:
        raise InputError("holds no .json file of scores.", code="no_scores", file=str(directory), hint=_HINT)
    scores: dict[_Place, float] = {}
    for path in files:
        given = _parse(path)
        is_trait = any(key.startswith("neg") for key in given)
        for key, score in given.items():
            place = _place(path, key, is_trait=is_trait)
            if place in scores:
                raise InputError(f"gives {key} a second time.", code="bad_scores", file=str(path), hint=_HINT)
            scores[place] = _number(score, key, path)
    return scores


def import_released_scores(location: Location, index: pa.Table, directory: Path, judge: str) -> Imported:
    """Write the scores of the released pipeline into a run.

    Args:
        location: The run's store.
        index: The index of its rollouts.
        directory: The directory of scores.
        judge: Name to keep them under.

    Raises:
        InputError: A score cannot be read, or none belongs to a single rollout of this run.
    """
    scores = read_released_scores(directory)
    rows_of: dict[tuple[Any, ...], list[tuple[str, int]]] = {}
    columns = ["kind", "persona", "polarity", "prompt_index", "question_index", "unit_id", "row"]
    for line in index.select(columns).to_pylist():
        place = tuple(line[column] for column in columns[:5])
        rows_of.setdefault(place, []).append((line["unit_id"], line["row"]))
    by_unit: dict[str, list[tuple[int, float]]] = {}
    known = scores.keys() & rows_of.keys()
    for place in sorted(place for place in known if len(rows_of[place]) == 1):
        unit_id, row = rows_of[place][0]
        by_unit.setdefault(unit_id, []).append((row, scores[place]))
    if not by_unit:
        raise _none_belongs(scores, index, directory)
    for unit_id, scored in sorted(by_unit.items()):
        write_scores(location, judge, unit_id, [row for row, _ in scored], [score for _, score in scored])
    num_scored = sum(len(scored) for scored in by_unit.values())
    return Imported(num_scored, index.num_rows - num_scored, len(scores) - len(known), len(known) - num_scored)


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_text(path, "scores"))
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise InputError(f"is not JSON: {reason}.", code="not_json", file=str(path), hint=_HINT) from None
    if not isinstance(found, dict):
        raise InputError("is not an object of scores.", code="bad_scores", file=str(path), hint=_HINT)
    return found


def _place(path: Path, key: str, *, is_trait: bool) -> _Place:
    found = _KEY.fullmatch(key)
    if found is None:
        raise InputError(f"{key[:60]!r} is not the key of a score.", code="bad_scores", file=str(path), hint=_HINT)
    label, prompt, question = found[1], int(found[2]), int(found[3])
    if label == "default" or path.stem == "default":
        return "default", DEFAULT_PERSONA, "pos", prompt, question
    return "trait" if is_trait else "role", path.stem, "neg" if label == "neg" else "pos", prompt, question


def _number(score: Any, key: str, path: Path) -> float:
    """Return a score; NaN where the judge gave none that is a number, such as REFUSAL."""
    if score is None or score == "REFUSAL":
        return math.nan
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e30:
        raise InputError(
            f"{key} is {json.dumps(score)[:40]}, and must be a number.", code="bad_scores", file=str(path), hint=_HINT
        )
    return float(score)


def _none_belongs(scores: Mapping[_Place, float], index: pa.Table, directory: Path) -> InputError:
    known = sorted(set(index["persona"].to_pylist()))
    first = min(scores)[1] if scores else ""
    suggestion = closest(first, known) if first not in known else ""
    return InputError(
        f"none of these {len(scores):,} scores belongs to a single rollout of this run. {suggestion}".strip(),
        code="no_such_rollout",
        file=str(directory),
        hint=f"The run has {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}.",
    )
