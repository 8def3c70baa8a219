"""Units of conversations, existing or to be had: those of one persona, polarity and prompt, in address order. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from ..personas import Kind, Polarity
from ..work.units import WorkUnit
from .unit_names import object_name


class _Addressed(Protocol):
    """The part of a conversation's address that its rows share, and its index in the job."""

    @property
    def kind(self) -> Kind: ...
    @property
    def persona(self) -> str: ...
    @property
    def polarity(self) -> Polarity: ...
    @property
    def prompt_index(self) -> int: ...
    @property
    def question_index(self) -> int: ...
    @property
    def sample_index(self) -> int: ...
    @property
    def conversation_index(self) -> int: ...


_Talk = TypeVar("_Talk", bound=_Addressed)


def turn_units(
    conversations: Iterable[_Talk],
    turns: Callable[[_Talk], Iterable[int]],
    batches: Callable[[Iterator[_Talk]], Iterable[Sequence[_Talk]]],
) -> Iterator[WorkUnit]:
    """Divide conversations into units whose rows are their turns; a conversation is never divided.

    Args:
        conversations: The conversations, in any order.
        turns: The turns of a conversation that are rows.
        batches: Divides the conversations of one persona, polarity and prompt into units, keeping their order.
    """
    names: dict[str, tuple[str, str]] = {}
    ordered = sorted(conversations, key=lambda one: (_design(one), one.question_index, one.sample_index))
    for (kind, persona, polarity, prompt), group in itertools.groupby(ordered, key=_design):
        name = object_name(kind, persona, names)
        for number, batch in enumerate(batches(group)):
            rows = [(one, turn) for one in batch for turn in turns(one)]
            yield WorkUnit(
                unit_id=f"{kind}.{name}.{polarity}.p{prompt}.b{number}",
                kind=kind,
                persona=persona,
                polarity=polarity,
                prompt_index=prompt,
                question_indices=tuple(one.question_index for one, _ in rows),
                sample_indices=tuple(one.sample_index for one, _ in rows),
                turn_indices=tuple(turn for _, turn in rows),
                conversation_indices=tuple(one.conversation_index for one, _ in rows),
            )


def _design(one: _Addressed) -> tuple[Kind, str, Polarity, int]:
    """Return the part of the address that all conversations of a unit share."""
    return one.kind, one.persona, one.polarity, one.prompt_index
