"""Our catalog layout: one YAML file a persona, made to be edited and reviewed by people.

A persona's name is its file's name and its kind is its folder, so neither can disagree with the content. Judge
prompts are put together from the persona's own description of a full performance and one shared rubric, this package's
where a directory has none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ..personas import DEFAULT_PERSONA, Kind, Persona, Question
from ..yaml_file import parse_yaml, read_text, validate

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
    """Find the persona files of a directory in our layout."""
    files: dict[tuple[Kind, str], Path] = {}
    folders: dict[Kind, str] = {"role": "roles", "trait": "traits"}
    for kind, folder in folders.items():
        for path in (root / folder).glob("*.yaml"):
            files[(kind, path.stem)] = path
    if (root / DEFAULT_FILE).is_file():
        files[("default", DEFAULT_PERSONA)] = root / DEFAULT_FILE
    return files


def read_questions(root: Path) -> tuple[Question, ...]:
    """Read the shared questions.

    Raises:
        InputError: The file breaks the format.
    """
    path = root / QUESTIONS_FILE
    text = read_text(path, "a list of questions")
    listed = validate(_QuestionsFile, parse_yaml(text, str(path)), text=text, file=str(path))
    return tuple(Question(key, question) for key, question in listed.questions.items())


def persona_reader(root: Path) -> Callable[[Kind, str, Path], Persona]:
    """Give the function that reads one persona file of this directory."""

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
