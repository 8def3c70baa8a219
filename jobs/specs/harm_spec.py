"""The section ``harm`` of a job spec: a neutral question to each role, and then a request of the user's file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..catalog import BUILTIN
from ..files.yaml_file import NO_BOOLEAN
from .spec_parts import MAX_COUNT, SpecSection

_Count = Annotated[int, Field(ge=1, le=MAX_COUNT), NO_BOOLEAN]


class HarmRoles(SpecSection):
    """The roles of a study of harm after drift.

    Attributes:
        names: Names or globs of roles in the catalog.
    """

    names: list[str] = Field(default=["*"], min_length=1)


class HarmSpec(SpecSection):
    """Conversations of two turns: a role answers a neutral question, and is then asked for something harmful.

    The default Assistant is asked like a role.

    Attributes:
        requests: The file of requests: JSON Lines with ``question``, perhaps ``category``, and any other keys.
        questions: Number of neutral questions that each role is asked, from the first.
        prompts: Number of system prompts of each role, from the first. The default Assistant has as many, or all that
            it has.
        roles: The roles.
        catalog: ``builtin``, or a directory of personas.
    """

    requests: Annotated[str, Field(min_length=1)]
    questions: _Count = 10
    prompts: _Count = 1
    roles: HarmRoles = HarmRoles()
    catalog: str = BUILTIN
