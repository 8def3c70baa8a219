"""The native catalog layout: one YAML file per persona, for people to edit and review.

The name of a persona is that of its file, and its kind follows from the folder, so the content can contradict neither.
A judge prompt is a shared rubric with the persona's own description of a full performance filled in; a directory
without ``rubrics.yaml`` uses the rubrics of the built-in catalog.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ..files.text_files import read_text
from ..files.yaml_file import parse_yaml, validate
from ..personas import DEFAULT_PERSONA, Kind, Persona, Question

QUESTIONS_FILE = "questions.yaml"
RUBRICS_FILE = "rubrics.yaml"
DEFAULT_FILE = "default.yaml"

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_MaybeEmpty = Annotated[str, StringConstraints(strip_whitespace=True)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _RoleFile(_File):
    description: _Text
    prompts: Annotated[list[_Text], Field(min_length=1)]
    judge: _MaybeEmpty = ""
    questions: list[_Text] = []


class _Pair(_File):
    pos: _Text
    neg: _Text


class _TraitFile(_File):
    description: _Text
    pairs: Annotated[list[_Pair], Field(min_length=1)]
    questions: list[_Text] = []
    judge: _MaybeEmpty = ""


class _DefaultFile(_File):
    description: _Text
    prompts: Annotated[list[_MaybeEmpty], Field(min_length=1)]


class _QuestionsFile(_File):
    questions: Annotated[dict[str, _Text], Field(min_length=1)]


class _RubricsFile(_File):
    role: _Text
    trait: _Text


def persona_files(root: Path) -> dict[tuple[Kind, str], Path]:
    """Find the persona files of a directory in the native layout, by (kind, name)."""
    files: dict[tuple[Kind, str], Path] = {}
    folders: dict[Kind, str] = {"role": "roles", "trait": "traits"}
    for kind, folder in folders.items():
        for path in (root / folder).glob("*.yaml"):
            # Hidden files are what editors and archivers leave behind, such as ._pirate.yaml.
            if not path.name.startswith("."):
                files[(kind, path.stem)] = path
    if (root / DEFAULT_FILE).is_file():
        files[("default", DEFAULT_PERSONA)] = root / DEFAULT_FILE
    return files


def read_questions(root: Path) -> tuple[Question, ...]:
    """Read the shared questions.

    Raises:
        InputError: The file is missing or invalid.
    """
    path = root / QUESTIONS_FILE
    text = read_text(path, "a list of questions")
    listed = validate(_QuestionsFile, parse_yaml(text, str(path)), text=text, file=str(path))
    return tuple(Question(key, question) for key, question in listed.questions.items())


def persona_reader(root: Path) -> Callable[[Kind, str, Path], Persona]:
    """Make the function that reads a persona file of a directory.

    Args:
        root: The directory, which may hold rubrics of its own.

    Returns:
        A function of kind, name and file, which raises ``InputError`` if the file is invalid.
    """

    def rubric(kind: Kind) -> str:
        path = root / RUBRICS_FILE
        if not path.is_file():
            path = Path(__file__).parent / RUBRICS_FILE
        text = read_text(path, "the judge rubrics")
        rubrics = validate(_RubricsFile, parse_yaml(text, str(path)), text=text, file=str(path))
        return rubrics.role if kind == "role" else rubrics.trait

    def read(kind: Kind, name: str, path: Path) -> Persona:
        text = read_text(path, f"a {kind}")
        data = parse_yaml(text, str(path))
        if kind == "default":
            default = validate(_DefaultFile, data, text=text, file=str(path))
            return Persona(kind, name, default.description, tuple(default.prompts))
        file = validate(_RoleFile if kind == "role" else _TraitFile, data, text=text, file=str(path))
        judge = ""
        if file.judge:
            judge = rubric(kind).replace("{name}", name.replace("_", " ")).replace("{description}", file.judge)
        questions = tuple(Question(f"{name}-{i}", q) for i, q in enumerate(file.questions))
        if isinstance(file, _RoleFile):
            return Persona(kind, name, file.description, tuple(file.prompts), (), questions, judge)
        pos, neg = tuple(p.pos for p in file.pairs), tuple(p.neg for p in file.pairs)
        return Persona(kind, name, file.description, pos, neg, questions, judge)

    return read
