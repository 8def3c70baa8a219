"""Openings of text that a base model completes, to see who speaks. Knows nothing of models or steering."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ..files.text_files import read_text
from ..files.user_paths import local_path
from ..files.yaml_file import parse_yaml, validate

BUILTIN = "builtin"

_FILE = Path(__file__).parent / "prefills.yaml"
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


@dataclass(frozen=True, slots=True)
class Prefill:
    """One opening.

    Attributes:
        group: What it asks about: ``job``, ``self``, ``wish`` or ``others`` in the built-in file.
        text: The text to be completed; ends with a word, without a blank.
    """

    group: str
    text: str


class _PrefillsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: Annotated[dict[_Text, Annotated[list[_Text], Field(min_length=1)]], Field(min_length=1)]


def base_prefills(file: str = BUILTIN) -> tuple[Prefill, ...]:
    """Read the openings that a base model completes.

    Args:
        file: ``builtin``, or a YAML file with ``groups``, a mapping from the name of a group to its openings.

    Returns:
        The openings, group by group, in the order of the file.

    Raises:
        InputError: The file is missing or invalid; names file, line and field.

    Example:
        >>> base_prefills()[0]
        Prefill(group='job', text='My job is to')
    """
    path = _FILE if file == BUILTIN else local_path(file, "prefills")
    text = read_text(path, "the openings for a base model")
    read = validate(_PrefillsFile, parse_yaml(text, str(path)), text=text, file=str(path))
    return tuple(Prefill(group, opening) for group, openings in read.groups.items() for opening in openings)
