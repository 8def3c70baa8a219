"""Read the scores of the released pipeline: a JSON file per persona, with ``<label>_p<prompt>_q<question>`` as keys."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...jobs.errors import InputError
from ...jobs.files.text_files import read_text
from ...jobs.personas import DEFAULT_PERSONA, Kind
from .given_scores import GivenScore, ScorePlace, given_score, refuse_faults

_KEY = re.compile(r"(pos|neg|default)_p(\d{1,9})_q(\d{1,9})")
_HINT = 'A file is a persona, as pirate.json: {"pos_p0_q0": 3, "pos_p0_q1": 1}.'


def read_released_scores(directory: Path, traits_only: Collection[str] = ()) -> list[GivenScore]:
    """Read the scores of a directory of the released pipeline.

    Args:
        directory: A directory with a ``.json`` file per persona; ``default.json`` is the default Assistant.
        traits_only: Names of the run that are traits and no roles. A file with the label ``neg`` is a trait's as well.

    Returns:
        The scores. Their keys name no sample, so each stands for the only rollout of its prompt and question.

    Raises:
        InputError: There is no such file, or one is not in this layout; names the files and the keys.
    """
    files = sorted(path for path in directory.glob("*.json") if not path.name.startswith("."))
    if not files:
        raise InputError("holds no .json file of scores.", code="no_scores", file=str(directory), hint=_HINT)
    scores: dict[ScorePlace, GivenScore] = {}
    faults: list[InputError] = []
    for path in files:
        given = _parse(path)
        is_trait = path.stem in traits_only or any(key.startswith("neg") for key in given)
        for key, score in given.items():
            try:
                place = _place(path, key, is_trait=is_trait)
                if place in scores:
                    raise InputError(f"gives {key} a second time.", code="bad_scores", file=str(path), hint=_HINT)
                scores[place] = given_score(place, score, key, str(path))
            except InputError as fault:
                faults.append(fault)
    refuse_faults(faults, str(directory))
    return list(scores.values())


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_text(path, "scores"))
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise InputError(f"is not JSON: {reason}.", code="not_json", file=str(path), hint=_HINT) from None
    if not isinstance(found, dict):
        raise InputError("is not an object of scores.", code="bad_scores", file=str(path), hint=_HINT)
    return found


def _place(path: Path, key: str, *, is_trait: bool) -> ScorePlace:
    found = _KEY.fullmatch(key)
    if found is None:
        raise InputError(f"{key[:60]!r} is not the key of a score.", code="bad_scores", file=str(path), hint=_HINT)
    label, prompt, question = found[1], int(found[2]), int(found[3])
    if label == "default" or path.stem == "default":
        return ScorePlace("default", DEFAULT_PERSONA, "pos", prompt, question)
    kind: Kind = "trait" if is_trait else "role"
    return ScorePlace(kind, path.stem, "neg" if label == "neg" else "pos", prompt, question)
