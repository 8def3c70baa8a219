"""The neutral questions that open a conversation before a harmful request. Knows nothing of roles or requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ..files.text_files import read_text
from ..files.yaml_file import parse_yaml, validate

_FILE = Path(__file__).parent / "neutral.yaml"
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _NeutralFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: Annotated[list[_Text], Field(min_length=1)]


def neutral_questions() -> tuple[str, ...]:
    """Read the ten neutral questions, by question_index.

    Example:
        >>> len(neutral_questions())
        10
    """
    text = read_text(_FILE, "the neutral questions")
    return tuple(validate(_NeutralFile, parse_yaml(text, str(_FILE)), text=text, file=str(_FILE)).questions)
