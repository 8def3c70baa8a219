"""How edits of the residual stream travel to vLLM's workers: where there may be any, what each does, to which tokens.

The places of edits are fixed when the model is loaded, because they become part of its compiled graphs. Before a
request is sent, the workers are told what its intervention does (``EditUpload``), each intervention and each direction
once, as rows of tables of fixed size; the request itself carries the numbers of two rows (``RequestEdits``). Does not
import vLLM or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EDITS_KEY = "persona_atlas_edits"
"""Where the plan and the edits of a request lie in vLLM's dictionaries."""

NO_EDIT = 0
"""Row of the table of settings, and of the table of directions, that changes nothing."""

DIRECTIONS = 512
"""Directions that workers hold: 17 MB at a d_model of 8192."""

EDITS_PER_LAYER = 2
"""Edits of one layer by one request, where no places are named."""


@dataclass(frozen=True, slots=True)
class EditPlan:
    """Where requests may be edited, and how much of it the workers hold.

    Attributes:
        places: The layer of each place, ascending: a layer stands there as often as one request may edit it.
        directions: Rows of the table of directions, besides the one of ``NO_EDIT``.
        settings: Rows of the table of settings, besides the one of ``NO_EDIT``.
    """

    places: tuple[int, ...]
    directions: int
    settings: int

    def to_json(self) -> dict[str, Any]:
        """Return the plan as the worker's configuration carries it."""
        return {"places": list(self.places), "directions": self.directions, "settings": self.settings}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EditPlan:
        """Read what ``to_json`` returned."""
        return cls(tuple(data["places"]), data["directions"], data["settings"])


@dataclass(frozen=True, slots=True)
class EditUpload:
    """Rows that workers have to write before a request needs them.

    Attributes:
        directions: Row and the numbers of its direction, of length one: little-endian float32.
        settings: Row and, for each of its places, index of the place, row of the direction, ``a``, ``b`` and floor.
            The other places of the row change nothing.
    """

    directions: tuple[tuple[int, bytes], ...]
    settings: tuple[tuple[int, tuple[tuple[int, int, float, float, float], ...]], ...]


@dataclass(frozen=True, slots=True)
class RequestEdits:
    """The edits of one request, by the rows that the workers have.

    Attributes:
        prompt: Row of the table of settings for its prompt tokens.
        response: The same for its response tokens.
        response_start: First token of its response; all that precede it are prompt.
        key: Digest of the intervention and of ``response_start``; ``""`` where nothing acts on responses alone. From
            there on, the request shares its keys and values only with requests of the same key.
    """

    prompt: int
    response: int
    response_start: int
    key: str = ""

    def to_json(self) -> list[Any]:
        """Return the edits as a request's parameters carry them."""
        return [self.prompt, self.response, self.response_start, self.key]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> RequestEdits:
        """Read what ``to_json`` returned."""
        return cls(*data)
