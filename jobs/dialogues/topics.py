"""What a simulated user talks about: domains of user personas with their topics, from YAML files.

A domain is one file, and its name that of the file. The built-in files lie in ``catalog``. Texts speak to whoever plays
the user, in the second person. Knows nothing of models, nor of how the instructions of a simulated user are worded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from ..errors import InputError
from ..files.names import equal_names, name_problem
from ..files.text_files import read_text
from ..files.user_paths import is_directory, local_path
from ..files.yaml_file import parse_yaml, validate

BUILTIN = "builtin"
FIELD = "drift.conversations"
"""Field of a spec that names the directory, for errors."""

_CATALOG = Path(__file__).parent / "catalog"
_HINT = "See docs/studies.md for the form of a domain's file."


@dataclass(frozen=True, slots=True)
class UserPersona:
    """A person who talks with the model.

    Attributes:
        name: Name of the person, unique in the domain.
        description: Who the person is and what they need, in the second person.
        manner: How the person talks, in the second person.
        topics: What each conversation is about, by question_index: one or two sentences, in the second person.
    """

    name: str
    description: str
    manner: str
    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DomainTopics:
    """The conversations of one domain.

    Attributes:
        name: Name of the domain, such as ``coding``: that of its file, without the suffix.
        personas: Who plays the user, by prompt_index.
    """

    name: str
    personas: tuple[UserPersona, ...]


def _refuse_bad_name(name: str) -> str:
    problem = name_problem(name)
    if problem is not None:
        raise ValueError(f"is the name of a person, which {problem}")
    return name


def _refuse_repeated_topics(topics: list[str]) -> list[str]:
    seen: set[str] = set()
    for topic in topics:
        if topic in seen:
            raise ValueError(f"has the topic {topic[:60]!r} twice")
        seen.add(topic)
    return topics


_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Name = Annotated[str, AfterValidator(_refuse_bad_name)]
_Topics = Annotated[list[_Text], Field(min_length=1), AfterValidator(_refuse_repeated_topics)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _PersonaEntry(_File):
    description: _Text
    manner: _Text
    topics: _Topics


class _DomainFile(_File):
    personas: Annotated[dict[_Name, _PersonaEntry], Field(min_length=1)]


def load_conversations(directory: str = BUILTIN) -> tuple[DomainTopics, ...]:
    """Read the domains of a catalog of conversations.

    Args:
        directory: ``builtin``, or a directory with a file ``<domain>.yaml`` for each domain. Hidden files are left out.

    Returns:
        The domains, sorted by name.

    Raises:
        InputError: The directory is missing or has no such file, the name of a file cannot be stored, or a file is
            invalid (names file, line and field).

    Example:
        >>> domains = load_conversations()
        >>> sum(len(persona.topics) for domain in domains for persona in domain.personas) % 100
        0
    """
    root = _CATALOG if directory == BUILTIN else local_path(directory, FIELD)
    if not is_directory(root, FIELD):
        raise InputError(
            "there is no such directory.", code="no_catalog", file=directory, hint="Give a directory or 'builtin'."
        )
    files = {path.stem: path for path in root.glob("*.yaml") if not path.name.startswith(".")}
    if not files:
        raise InputError("holds no domain: no file *.yaml.", code="no_catalog", file=directory, hint=_HINT)
    _refuse_bad_file_names(files)
    return tuple(_read_domain(name, files[name]) for name in sorted(files))


def _refuse_bad_file_names(files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        problem = name_problem(name)
        if problem is not None:
            raise InputError(
                f"the name {name[:60]!r} {problem}, and it is part of the names of what is stored.",
                code="bad_name",
                file=str(path),
                hint="Rename the file.",
            )
    equal = equal_names(sorted(files))
    if equal is not None:
        raise InputError(
            f"domains {equal[0]!r} and {equal[1]!r} differ in case or in composed letters only, and a file system may "
            "not tell them apart.",
            code="equal_names",
            field=FIELD,
            file=str(files[equal[1]].parent),
            hint="Rename one of them.",
        )


def _read_domain(name: str, path: Path) -> DomainTopics:
    text = read_text(path, "the topics of a domain")
    read = validate(_DomainFile, parse_yaml(text, str(path)), text=text, file=str(path))
    personas = tuple(
        UserPersona(person, entry.description, entry.manner, tuple(entry.topics))
        for person, entry in read.personas.items()
    )
    return DomainTopics(name, personas)
