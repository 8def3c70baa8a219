"""The layout of the released Assistant Axis data, for users who have a copy of it.

``roles/instructions/<name>.json`` with ``instruction`` (a list of ``{"pos": ...}``), ``questions`` and
``eval_prompt``; ``default.json`` among them with ``instruction`` alone; ``traits/instructions/<name>.json`` with
``{"pos", "neg"}`` pairs; ``extraction_questions.jsonl`` with ``question`` and ``id``. Its peculiarities are kept: an
empty first instruction (no system prompt), ``{model_name}``, a question listed twice, a name of a role and a trait.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.text_files import read_text
from ..personas import DEFAULT_PERSONA, Kind, Persona, Question

_HINT = "See docs/catalog.md for the fields of this layout."


def persona_files(root: Path) -> dict[tuple[Kind, str], Path]:
    """Find the persona files of a directory in the released layout, by (kind, name)."""
    files: dict[tuple[Kind, str], Path] = {}
    folders: dict[Kind, str] = {"role": "roles", "trait": "traits"}
    for kind, folder in folders.items():
        for path in (root / folder / "instructions").glob("*.json"):
            # Hidden files are what editors and archivers leave behind, such as ._pirate.json.
            if not path.name.startswith("."):
                files[(kind, path.stem)] = path
    default = files.pop(("role", "default"), None)
    if default is not None:
        files[("default", DEFAULT_PERSONA)] = default
    return files


def read_questions(root: Path) -> tuple[Question, ...]:
    """Read the shared questions from ``extraction_questions.jsonl``; none if there is no such file.

    Raises:
        InputError: A line is not a JSON object with a ``question``.
    """
    path = root / "extraction_questions.jsonl"
    if not path.is_file():
        return ()
    questions: list[Question] = []
    # splitlines would also split at separators that are valid within JSON strings, such as U+2028.
    for number, line in enumerate(read_text(path, "a list of questions").split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse(line, path, number)
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"line {number} has no question.", code="bad_catalog", file=str(path), hint=_HINT)
        questions.append(Question(str(row.get("id", len(questions))), text))
    return tuple(questions)


def persona_reader(root: Path) -> Callable[[Kind, str, Path], Persona]:
    """Make the function that reads a persona file; in this layout it does not depend on the directory.

    Args:
        root: The directory; unused.

    Returns:
        A function of kind, name and file, which raises ``InputError`` if the file is invalid.
    """
    del root
    return _read


def _read(kind: Kind, name: str, path: Path) -> Persona:
    data = _parse(read_text(path, f"a {kind}"), path)
    instructions = data.get("instruction")
    if not isinstance(instructions, list) or not instructions:
        raise InputError("has no list 'instruction'.", code="bad_catalog", file=str(path), hint=_HINT)
    pos = tuple(_text(entry, "pos", path, i, may_be_empty=kind == "default") for i, entry in enumerate(instructions))
    neg: tuple[str, ...] = ()
    if kind == "trait":
        neg = tuple(_text(entry, "neg", path, i, may_be_empty=False) for i, entry in enumerate(instructions))
    questions = data.get("questions", [])
    if not isinstance(questions, list) or not all(isinstance(q, str) for q in questions):
        raise InputError("'questions' is not a list of texts.", code="bad_catalog", file=str(path), hint=_HINT)
    judge = data.get("eval_prompt", "")
    own = tuple(Question(f"{name}-{i}", q) for i, q in enumerate(questions))
    return Persona(kind, name, "", pos, neg, own, judge if isinstance(judge, str) else "")


def _text(entry: Any, polarity: str, path: Path, index: int, *, may_be_empty: bool) -> str:
    text = entry.get(polarity) if isinstance(entry, dict) else None
    if not isinstance(text, str) or not (text.strip() or may_be_empty):
        raise InputError(
            f"instruction {index} has no text {polarity!r}.", code="bad_catalog", file=str(path), hint=_HINT
        )
    return text.strip()


def _parse(text: str, path: Path, line: int | None = None) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        # json also refuses numbers of thousands of digits, and what is nested a thousand levels deep.
        at, reason = line or getattr(error, "lineno", 1), getattr(error, "msg", error)
        raise InputError(f"line {at} is not JSON: {reason}.", code="not_json", file=str(path), hint=_HINT) from None
    if not isinstance(data, dict):
        raise InputError(f"line {line or 1} is not a JSON object.", code="bad_catalog", file=str(path), hint=_HINT)
    return data
