"""Rows of a stored run as plain values, and the conversations that they are responses of. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..conversation import Conversation, Message
from ..errors import InputError
from ..work.units import WorkUnit


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One rollout of a stored run, with what is needed to read it again.

    Attributes:
        system_prompt: The system prompt; ``""`` for none.
        question: The last message of the user before the response.
        response: Text of the response.
        prompt_token_ids: Token ids of everything before the response.
        content_token_ids: Token ids of the response's content, without the token that ends the turn.
        extra: Additional keys of its conversation in the run's own input, as JSON; ``""`` for none.
    """

    system_prompt: str
    question: str
    response: str
    prompt_token_ids: tuple[int, ...]
    content_token_ids: tuple[int, ...]
    extra: str = ""


@dataclass(frozen=True, slots=True)
class StoredUnit:
    """A committed unit of a stored run, without its texts.

    Attributes:
        unit: The unit, with the turn and the conversation of every row. A row of a run of single questions is turn 1 of
            a conversation of its own.
        prompt_tokens: Tokens of each row's prompt.
        content_tokens: Content tokens of each row's response; 0 for an empty one.
        texts_sha256: SHA-256 of the table of its texts, as hexadecimal digits.
    """

    unit: WorkUnit
    prompt_tokens: tuple[int, ...]
    content_tokens: tuple[int, ...]
    texts_sha256: str

    @property
    def conversation_indices(self) -> tuple[int, ...]:
        """The conversation of each row."""
        assert self.unit.conversation_indices is not None
        return self.unit.conversation_indices

    @property
    def turn_indices(self) -> tuple[int, ...]:
        """The turn of each row in its conversation."""
        assert self.unit.turn_indices is not None
        return self.unit.turn_indices

    def rows(self, places: Sequence[int], suffix: str = "") -> WorkUnit:
        """Return a unit of some of the rows.

        Args:
            places: Places of the rows, ascending.
            suffix: What is appended to the unit's id.
        """
        unit = self.unit
        return replace(
            unit,
            unit_id=unit.unit_id + suffix,
            question_indices=tuple(unit.question_indices[place] for place in places),
            sample_indices=tuple(unit.sample_indices[place] for place in places),
            turn_indices=tuple(self.turn_indices[place] for place in places),
            conversation_indices=tuple(self.conversation_indices[place] for place in places),
        )


def whole_conversations(
    stored: StoredUnit, rows: Sequence[StoredRow], source: str
) -> tuple[tuple[Conversation, int], ...]:
    """Put the conversations of a unit together from its rows, each of which has a response and the question before it.

    Args:
        stored: The unit.
        rows: Its rows.
        source: URL of the store, for errors.

    Returns:
        For each row its conversation, the same object for rows of one conversation, and the row's turn there.

    Raises:
        InputError: Messages of user and assistant do not take turns, so that rows do not hold the whole conversation.
    """
    by_conversation: dict[int, list[int]] = {}
    for place, index in enumerate(stored.conversation_indices):
        by_conversation.setdefault(index, []).append(place)
    found = {index: _conversation(stored, places, rows, source) for index, places in by_conversation.items()}
    pairs = zip(stored.conversation_indices, stored.turn_indices, strict=True)
    return tuple((found[index], turn) for index, turn in pairs)


def _conversation(stored: StoredUnit, places: Sequence[int], rows: Sequence[StoredRow], source: str) -> Conversation:
    unit, first = stored.unit, places[0]
    # Of a dialogue that ended early, the turns that were not reached have no prompt.
    places = [place for place in places if stored.prompt_tokens[place]]
    turns = [stored.turn_indices[place] for place in places]
    place = f"{source}, {unit.unit_id}, row {first}"
    if turns != list(range(1, 2 * len(turns), 2)):
        raise InputError(
            f"has responses at the turns {', '.join(map(str, turns))}, and messages that are no response or question "
            f"are not stored ({place}).",
            code="not_in_turns",
            field="conversations.rendering",
            hint="Set it to tokens, for a model with the same vocabulary.",
        )
    messages: list[Message] = []
    for row in (rows[place] for place in places):
        messages += [Message("user", row.question), Message("assistant", row.response)]
    return Conversation(
        kind=unit.kind,
        persona=unit.persona,
        polarity=unit.polarity,
        prompt_index=unit.prompt_index,
        question_index=unit.question_indices[first],
        sample_index=unit.sample_indices[first],
        conversation_index=stored.conversation_indices[first],
        system_prompt=rows[first].system_prompt,
        messages=tuple(messages),
        extra=rows[first].extra,
        place=place,
    )
