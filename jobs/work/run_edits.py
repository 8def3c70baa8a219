"""The edits of a run: what each entry of ``interventions`` became, with the numbers of its axis. Plain values.

They are resolved once, when a job is prepared; from then on the run has these edits, whatever becomes of the axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

from ..interventions import Ablate, AddVector, Cap, Edit, Intervention
from ..specs.spec import digest_of


@dataclass(frozen=True)
class ResolvedEntry:
    """One entry of ``interventions``, resolved.

    Attributes:
        asked: The entry as the spec has it, without fields that have their default.
        source: Where the axis or the capping file was read.
        edits: What it became, in the order of layers.
        model: The model of the axis, as its source names it; None where it does not.
        reduction: Id of the reduction of the axis; None for a capping file.
        note: A sentence that belongs to every number made with it; empty for none.
    """

    asked: Mapping[str, Any]
    source: str
    edits: tuple[Edit, ...]
    model: str | None = None
    reduction: str | None = None
    note: str = ""

    def __str__(self) -> str:
        """Say what it does, where, and with which numbers."""
        layers = sorted({edit.layer for edit in self.edits})
        at = f"layer {layers[0]}" if len(layers) == 1 else f"layers {_span(layers)}"
        tokens = "tokens of the response" if self.asked.get("positions") == "response" else "all tokens"
        return f"{self._what()}; {at}, {tokens}; {_numbers(self.edits)}; axis of {self.source}" + (
            f". {self.note}" if self.note else ""
        )

    def _what(self) -> str:
        asked = self.asked
        if "experiment" in asked:
            return f"cap as released: {asked['experiment']}"
        if "cap" in asked:
            return f"cap {asked['cap']}"
        if "steer" in asked:
            steer = asked["steer"]
            return f"steer by {steer['absolute']}" if isinstance(steer, Mapping) else f"steer by {steer} of the norm"
        return "ablate the axis"


@dataclass(frozen=True)
class RunEdits:
    """All edits of a run, in the order in which they are applied.

    Attributes:
        entries: The entries of ``interventions``, at least one.

    Example:
        >>> from persona_atlas.jobs.interventions import Direction
        >>> cap = Cap(15, Direction.of([3.0, 4.0]), floor=2.5)
        >>> edits = RunEdits((ResolvedEntry({"cap": "p0.25"}, "runs/demo", (cap,)),))
        >>> print(*edits.lines, sep="; ")
        cap p0.25; layer 15, all tokens; floor 2.5 on the axis; axis of runs/demo
    """

    entries: tuple[ResolvedEntry, ...]
    intervention: Intervention = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made once: every request of a worker refers to the same object.
        whole = Intervention(tuple(edit for entry in self.entries for edit in entry.edits))
        object.__setattr__(self, "intervention", whole)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what is done: layers, tokens, vectors, floors and coefficients, and not where they came from."""
        return digest_of([terms_of(edit) for edit in self.intervention.edits])

    @property
    def lines(self) -> list[str]:
        """What each entry does, a line each, for people."""
        return [str(entry) for entry in self.entries]


def kind_of(edit: Edit) -> tuple[str, float | None]:
    """Return the kind of an edit, and its number: coefficient or floor; None for an ablation."""
    match edit:
        case AddVector():
            return "add", edit.coefficient
        case Ablate():
            return "ablate", None
        case Cap():
            return "cap", edit.floor


def terms_of(edit: Edit) -> list[Any]:
    """Return what identifies an edit, as JSON values."""
    kind, number = kind_of(edit)
    return [kind, edit.layer, edit.positions, number, sha256(edit.vector.data).hexdigest()]


def _numbers(edits: Sequence[Edit]) -> str:
    numbers = [number for _, number in map(kind_of, edits) if number is not None]
    if not numbers:
        return "the component is removed"
    shown = ", ".join(f"{number:.4g}" for number in numbers[:8]) + (" ..." if len(numbers) > 8 else "")
    name = "coefficient" if isinstance(edits[0], AddVector) else "floor"
    return f"{name}{'s' if len(numbers) > 1 else ''} {shown} on the axis"


def _span(layers: Sequence[int]) -> str:
    is_whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if is_whole else ", ".join(map(str, layers))
