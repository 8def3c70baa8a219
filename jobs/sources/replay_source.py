"""The source that reads the responses of a stored run again, through another model as a rule.

Rows keep the address that they have in that run, so that vectors, axis and scores of both are about the same rollouts.
Texts are read a unit at a time, when the unit is assigned: what is held of a run is the token counts of its rollouts.
Empty responses have no activations and are left out. Pure: the store is behind ``StoredTexts``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, overload

from ..conversation import Conversation
from ..errors import InputError
from ..specs.texts_spec import TextsRendering
from ..wording import count_of
from ..work.unit_size import RowSizes
from ..work.units import WorkUnit
from .reading.problems import Problem
from .replay_requests import StoredTextRequests, StoredTokenRequests
from .source import TokenCounts
from .stored_conversations import StoredRow, StoredUnit, whole_conversations

_PART = ".s"
"""Before the number of a unit that is a part of a stored one, but for the first."""


class StoredTexts(Protocol):
    """The texts of a run, as a source needs them."""

    @property
    def url(self) -> str:
        """Directory or URL of the run's store."""
        ...

    @property
    def units(self) -> Sequence[StoredUnit]:
        """The units to be read, in the order of the run's plan."""
        ...

    @property
    def num_planned(self) -> int:
        """Number of planned units."""
        ...

    @property
    def num_gained(self) -> int:
        """Number of committed units that are not read, because the job was planned before they were there."""
        ...

    def read(self, unit_id: str) -> Sequence[StoredRow]:
        """Read the rows of a unit with their texts and token ids, in row order.

        Raises:
            StoreError: The texts are missing or damaged.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a stored unit that a unit of the job reads: their places in it, ascending."""

    stored: StoredUnit
    places: tuple[int, ...]


class ReplaySource:
    """A source of the responses of a stored run.

    Args:
        texts: The run's texts.
        rendering: How they become tokens.
    """

    def __init__(self, texts: StoredTexts, rendering: TextsRendering) -> None:
        self._texts = texts
        self._rendering = rendering

    @property
    def generates(self) -> bool:
        """False: every response exists already."""
        return False

    @property
    def conversations(self) -> Sequence[Conversation]:
        """The conversations, read unit by unit as they are iterated over; empty where token ids are read."""
        return () if self._rendering == "tokens" else _Conversations(self._texts, self._texts.units)

    @property
    def skipped(self) -> tuple[Problem, ...]:
        """The responses that are empty, with their addresses."""
        return self._empty

    @cached_property
    def _empty(self) -> tuple[Problem, ...]:
        return tuple(
            Problem("is an empty response", self._texts.url, f"{address}", hint="")
            for stored in self._texts.units
            for address, tokens in zip(stored.unit.addresses(), stored.content_tokens, strict=True)
            if not tokens
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Say that units of the run are left out, because they are not committed or were not when this was planned."""
        gained = self._texts.num_gained
        if gained:
            return (
                f"The run at {self._texts.url} has {count_of(gained, 'unit')} more than when this run was planned, and "
                "they are left out. Another --store (store.url) reads the whole of it.",
            )
        num_units = len(self._texts.units)
        if num_units == self._texts.num_planned:
            return ()
        of_all = count_of(self._texts.num_planned, "unit")
        return (f"The run at {self._texts.url} has {num_units} of {of_all} so far; the others are left out.",)

    def units(self, sizes: RowSizes, max_context: int) -> Iterator[WorkUnit]:
        """Make a unit of each stored one, or several where it exceeds the limits; see ``RequestSource.units``.

        Raises:
            InputError: A row by its token ids is longer than the context, or nothing has a response.
        """
        is_empty = True
        for stored in self._texts.units:
            for number, places in enumerate(self._batches(stored, sizes, max_context)):
                is_empty = False
                yield stored.rows(places, f"{_PART}{number}" if number else "")
        if is_empty:
            raise InputError(
                "has no response that is not empty, so there is nothing to read.",
                code="no_conversations",
                field="conversations.texts_of",
                hint="Name the store of a run whose responses are committed.",
            )

    def requests(self, unit: WorkUnit) -> StoredTokenRequests | StoredTextRequests:
        """Read the texts of a unit from the store of their run."""
        part = self._part(unit)
        rows = self._texts.read(part.stored.unit.unit_id)
        if self._rendering == "tokens":
            return StoredTokenRequests(tuple(rows[place] for place in part.places))
        placed = whole_conversations(part.stored, rows, self._texts.url)
        return StoredTextRequests(tuple(placed[place] for place in part.places))

    def identity(self, unit: WorkUnit) -> bytes:
        """Return which rows a unit reads, and the SHA-256 of the table that holds their texts."""
        part = self._part(unit)
        return json.dumps([unit.unit_id, part.stored.texts_sha256, part.places]).encode()

    def most_tokens(self, unit: WorkUnit, max_context: int) -> int:
        """Return the content tokens of a unit; where texts are rendered again, what the context has room for."""
        part = self._part(unit)
        return sum(self._most_tokens(part.stored, place, max_context) for place in part.places)

    def longest_prompt(self, units: Sequence[WorkUnit], size: Callable[[str], int]) -> int:
        """Return 0: nothing is generated."""
        return 0

    def token_counts(self, units: Sequence[WorkUnit]) -> TokenCounts:
        """Count the tokens that the run stored; another vocabulary has about as many."""
        parts = [self._part(unit) for unit in units]
        prompts = sum(part.stored.prompt_tokens[place] for part in parts for place in part.places)
        responses = sum(part.stored.content_tokens[place] for part in parts for place in part.places)
        rows = sum(len(part.places) for part in parts)
        return TokenCounts(prompts, responses, (prompts + responses) // rows)

    @cached_property
    def _by_id(self) -> dict[str, StoredUnit]:
        return {stored.unit.unit_id: stored for stored in self._texts.units}

    def _part(self, unit: WorkUnit) -> _Part:
        """Find the rows of a stored unit that a unit reads."""
        stored = self._by_id.get(unit.unit_id) or self._by_id[unit.unit_id.rpartition(_PART)[0]]
        assert unit.conversation_indices is not None
        assert unit.turn_indices is not None
        wanted = set(zip(unit.conversation_indices, unit.turn_indices, strict=True))
        rows = zip(stored.conversation_indices, stored.turn_indices, strict=True)
        return _Part(stored, tuple(place for place, row in enumerate(rows) if row in wanted))

    def _batches(self, stored: StoredUnit, sizes: RowSizes, max_context: int) -> Iterator[tuple[int, ...]]:
        """Divide the rows that are not empty; the rows of one conversation stay together."""
        places: list[int] = []
        tokens = 0
        filled = (place for place, count in enumerate(stored.content_tokens) if count)
        for _, group in itertools.groupby(filled, key=lambda place: stored.conversation_indices[place]):
            together = tuple(group)
            for place in together:
                self._refuse_too_long(stored, place, max_context)
            more = sum(self._most_tokens(stored, place, max_context) for place in together)
            if places and (len(places) + len(together) > sizes.most_rollouts or tokens + more > sizes.most_tokens):
                yield tuple(places)
                places, tokens = [], 0
            if len(together) > sizes.most_rollouts or more > sizes.most_tokens:
                raise InputError(
                    f"{stored.unit.unit_id} has a conversation of {count_of(len(together), 'response')} with up to "
                    f"{more:,} tokens, which is more than a unit holds.",
                    code="too_many",
                    field="conversations.texts_of",
                    hint="Capture fewer layers.",
                )
            places += together
            tokens += more
        if places:
            yield tuple(places)

    def _most_tokens(self, stored: StoredUnit, place: int, max_context: int) -> int:
        return stored.content_tokens[place] if self._rendering == "tokens" else max_context

    def _refuse_too_long(self, stored: StoredUnit, place: int, max_context: int) -> None:
        length = stored.prompt_tokens[place] + stored.content_tokens[place]
        if self._rendering == "tokens" and length > max_context:
            address = next(itertools.islice(stored.unit.addresses(), place, None))
            raise InputError(
                f"{address} has {length:,} tokens; the model's context is {max_context:,}.",
                code="too_long",
                field="conversations.texts_of",
                hint="Take a model with more context.",
            )


class _Conversations(Sequence[Conversation]):
    """The conversations of a run that have a response, read unit by unit.

    Args:
        texts: The run's texts.
        units: Its units.
    """

    def __init__(self, texts: StoredTexts, units: Sequence[StoredUnit]) -> None:
        self._texts = texts
        self._units = units
        self._length = sum(len(_with_response(stored)) for stored in units)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Conversation]:
        for stored in self._units:
            wanted = _with_response(stored)
            placed = whole_conversations(stored, self._texts.read(stored.unit.unit_id), self._texts.url)
            # In the order of the rows, each once.
            whole = {conversation.conversation_index: conversation for conversation, _ in placed}
            yield from (conversation for index, conversation in whole.items() if index in wanted)

    @overload
    def __getitem__(self, place: int) -> Conversation: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Conversation]: ...

    def __getitem__(self, place: int | slice) -> Conversation | Sequence[Conversation]:
        return list(self)[place]


def _with_response(stored: StoredUnit) -> set[int]:
    """Return the indices of the conversations of a unit that have a response that is not empty."""
    pairs = zip(stored.conversation_indices, stored.content_tokens, strict=True)
    return {index for index, tokens in pairs if tokens}
