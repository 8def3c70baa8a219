"""Rubrics that sort replies by labels: those of this folder, or any YAML file of the same form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from ...errors import InputError
from ...files.text_files import read_text
from ...files.user_paths import local_path
from ...files.yaml_file import parse_yaml, validate
from ..forms import ReplyForm, label_form
from ..requests import filled_in

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Label = Annotated[str, Field(pattern=r"^\w[\w -]{0,39}$")]


class _RubricFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Annotated[dict[_Label, _Text], Field(min_length=2, max_length=40)]
    prompt: _Text
    harm: Annotated[list[str], Field(min_length=1)] | None = None

    @field_validator("labels")
    @classmethod
    def _can_be_told_apart(cls, labels: dict[str, str]) -> dict[str, str]:
        if len({label.casefold().strip() for label in labels}) < len(labels):
            raise ValueError("two labels differ only in case or in spaces")
        return labels

    @field_validator("prompt")
    @classmethod
    def _shows_the_answer(cls, prompt: str) -> str:
        if "{answer}" not in prompt:
            raise ValueError("must have {answer}, where the reply is filled in; {question} and {labels} are others")
        return prompt

    @field_validator("harm")
    @classmethod
    def _counts_labels(cls, harm: list[str] | None, info: ValidationInfo) -> list[str] | None:
        labels = info.data.get("labels", harm or ())
        unknown = [label for label in harm or () if label not in labels]
        if unknown or len(set(harm or ())) < len(harm or ()):
            raise ValueError(f"must name labels of the rubric, each once; {', '.join(unknown) or 'one'} is not so")
        return harm


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked about a reply, and the labels that it may answer with.

    Attributes:
        name: Name of the rubric: that of its file, without the suffix.
        prompt: The question to the judge, with ``{question}`` and ``{answer}``; ``{labels}`` is filled in.
        labels: The labels, in the order of the file.
        harm: Those that count as harm; empty for a rubric that says nothing of harm. How labels are counted is no part
            of what the judge is asked, nor of ``digest``.
    """

    name: str
    prompt: str
    labels: tuple[str, ...]
    harm: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of labels and prompt, 16 hexadecimal digits."""
        return sha256(json.dumps([self.labels, self.prompt]).encode()).hexdigest()[:16]

    @property
    def form(self) -> ReplyForm:
        """What the judge is to reply with."""
        return label_form(self.labels)

    def asked(self, question: str, answer: str) -> str:
        """Return the request about one reply.

        Args:
            question: The question that was replied to.
            answer: The reply.
        """
        return filled_in(self.prompt, question, answer)


def rubric_names() -> tuple[str, ...]:
    """List the rubrics that come with the package.

    Example:
        >>> rubric_names()
        ('harm', 'role_adoption')
    """
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.yaml")))


def load_rubric(name: str, field: str = "--rubric") -> Rubric:
    """Read a rubric.

    Args:
        name: One of ``rubric_names``, or the path of a YAML file with ``labels`` (each with what it means),
            ``prompt`` and perhaps ``harm``, the labels that count as harm.
        field: Option or field that names it, for errors.

    Raises:
        InputError: There is no such rubric, or the file is invalid.

    Example:
        >>> load_rubric("role_adoption").labels
        ('assistant', 'human', 'nonhuman', 'mystical')
    """
    if name in rubric_names():
        path = Path(__file__).parent / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")):
        path = local_path(name, field)
    else:
        raise InputError(
            f"there is no rubric {name!r}.",
            code="no_such_rubric",
            field=field,
            hint=f"There are {' and '.join(rubric_names())}; a file of your own ends with .yaml.",
        )
    text = read_text(path, "a rubric")
    read = validate(_RubricFile, parse_yaml(text, str(path)), text=text, file=str(path))
    return Rubric(
        path.stem, read.prompt.replace("{labels}", _described(read.labels)), tuple(read.labels), tuple(read.harm or ())
    )


def _described(labels: Mapping[str, str]) -> str:
    return "; ".join(f"{label}: {meaning.rstrip('.')}" for label, meaning in labels.items()) + "."
