"""The edits of a run: what each entry of ``interventions`` became, with the numbers of its axis. Plain values.

They are resolved once, when a job is prepared; from then on the run has these edits, whatever becomes of the axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

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

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the edits, in their order."""
        return tuple(edit.layer for edit in self.edits)

    @property
    def numbers(self) -> tuple[float, ...]:
        """Coefficient or floor of each edit, along its vector; empty for an ablation."""
        return tuple(number for _, number in map(kind_of, self.edits) if number is not None)

    def __str__(self) -> str:
        """Say what it does, where, and with which numbers."""
        return entry_text(self.asked, self.source, self.layers, self.numbers, self.note)


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
        cap p0.25 on the axis of runs/demo, layer 15, all tokens; floor 2.5 in axis sign
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
        return digest_of_edits(self.intervention.edits)

    @property
    def lines(self) -> list[str]:
        """What each entry does, a line each, for people."""
        return [str(entry) for entry in self.entries]


def digest_of_edits(edits: Iterable[Edit]) -> str:
    """Return the SHA-256 over what edits do; see ``RunEdits.digest``."""
    return digest_of([terms_of(edit) for edit in edits])


EditKind = Literal["add", "ablate", "cap"]
"""Kinds of edits by the names that a store has."""


def kind_of(edit: Edit) -> tuple[EditKind, float | None]:
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


def entry_text(
    asked: Mapping[str, Any], source: str, layers: Sequence[int], numbers: Sequence[float], note: str = ""
) -> str:
    """Say what an entry of ``interventions`` does, where, and with which numbers.

    Args:
        asked: The entry as the spec has it.
        source: Where the axis or the capping file was read.
        layers: Layers of its edits.
        numbers: Coefficient or floor of each; empty for an ablation.
        note: A sentence to add; empty for none.

    Example:
        >>> entry_text({"steer": -0.3}, "runs/demo", [15], [-12.5])
        'steer by -0.3 of the norm along the axis of runs/demo, layer 15, all tokens; coefficient -12.5 in axis sign'
    """
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {_span(sorted(layers))}"
    tokens = "tokens of the response" if asked.get("positions") == "response" else "all tokens"
    name = "coefficient" if "steer" in asked else "floor"
    shown = ", ".join(f"{number:.4g}" for number in numbers[:8]) + (" ..." if len(numbers) > 8 else "")
    values = f"; {name}{'s' if len(numbers) > 1 else ''} {shown} in axis sign" if numbers else ""
    return f"{_what(asked, source)}, {where}, {tokens}{values}" + (f". {note}" if note else "")


def _what(asked: Mapping[str, Any], source: str) -> str:
    if "experiment" in asked:
        return f"cap as {asked['experiment']} of {source}"
    if "cap" in asked:
        return f"cap {asked['cap']} on the axis of {source}"
    if "steer" in asked:
        steer = asked["steer"]
        strength = f"{steer['absolute']}" if isinstance(steer, Mapping) else f"{steer} of the norm"
        return f"steer by {strength} along the axis of {source}"
    return f"ablate the axis of {source}"


def _span(layers: Sequence[int]) -> str:
    is_whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if is_whole else ", ".join(map(str, layers))
