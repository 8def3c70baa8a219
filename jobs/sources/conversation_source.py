"""The source for existing conversations. Pure: the same conversations give the same units.

A unit has conversations of one persona, polarity and prompt, in address order. A conversation is never divided between
units, because all of its turns are captured in one forward pass.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..conversation import Conversation, Message
from ..errors import InputError
from ..messages import ChatMessage
from ..text_tokens import TEMPLATE_TOKENS, prompt_tokens, word_tokens
from ..work.rollouts import Rollout
from ..work.unit_size import BLOCK_BYTES_LIMIT, RowSizes
from ..work.units import GivenResponse, RolloutRequest, WorkUnit
from .reading.message_fields import reasoning_beside
from .reading.problems import Problem
from .reading.read_conversations import GivenInput
from .source import TokenCounts
from .turn_units import turn_units

ROWS_PER_UNIT = 256
"""Most rows of a unit, even where its size allows for more, so that a stopped run loses little work."""

BYTES_PER_TOKEN = 3
"""Assumed UTF-8 bytes per token, for sizing without a tokenizer: English has four or more, code and Chinese three."""


@dataclass(frozen=True, slots=True)
class ConversationRequests:
    """The conversations of a unit.

    Attributes:
        conversations: The conversations, in the order of the unit's rows.
    """

    conversations: tuple[Conversation, ...]

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make every request of the unit, the turns of each conversation in order."""
        for address, (messages, given) in zip(unit.addresses(), self._turns(), strict=True):
            yield RolloutRequest(address, messages, 0, given)

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Return None: all turns exist, so ``first`` makes all requests; see ``UnitRequests.following``."""
        return None

    def _turns(self) -> Iterator[tuple[tuple[ChatMessage, ...], GivenResponse]]:
        """Yield every response with the messages before it."""
        for conversation in self.conversations:
            for turn, messages in conversation.prompts():
                yield messages, GivenResponse(conversation, turn)


@dataclass(frozen=True, slots=True)
class ConversationSource:
    """A source of existing conversations, which are captured without generating.

    Attributes:
        conversations: All conversations, by ascending conversation_index.
        skipped: Entries of the input that were left out because they cannot be read.
        notes: What a user should know of the input, a sentence each.
    """

    conversations: tuple[Conversation, ...]
    skipped: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: GivenInput) -> ConversationSource:
        """Make a source of what was read from files or from memory."""
        return cls(given.conversations, given.skipped, given.notes)

    @property
    def generates(self) -> bool:
        """False: every response exists already."""
        return False

    def units(self, sizes: RowSizes, max_context: int) -> Iterator[WorkUnit]:
        """Divide the conversations into units; see ``RequestSource.units``.

        Raises:
            InputError: A conversation has more turns or tokens than a unit may have.
        """
        for given in self.conversations:
            _refuse_too_long(given, sizes, max_context)
        yield from turn_units(
            self.conversations, lambda one: one.turn_indices(), lambda group: _batches(group, sizes, max_context)
        )

    def requests(self, unit: WorkUnit) -> ConversationRequests:
        """Return the conversations of a unit."""
        return ConversationRequests(self._of(unit))

    def identity(self, unit: WorkUnit) -> bytes:
        """Return the texts of a unit's conversations as JSON; see ``RequestSource.identity``."""
        lines: list[str] = []
        for given in self._of(unit):
            messages = [_texts(message) for message in given.messages]
            lines.append(json.dumps([unit.unit_id, given.system_prompt, messages, given.extra]))
        return "".join(lines).encode()

    def most_tokens(self, unit: WorkUnit, max_context: int) -> int:
        """Return an upper bound of the content tokens of all responses of a unit's conversations."""
        return sum(_most_tokens(given, max_context) for given in self._of(unit))

    def longest_prompt(self, units: Sequence[WorkUnit], size: Callable[[str], int]) -> int:
        """Return 0: nothing is generated."""
        return 0

    def token_counts(self, units: Sequence[WorkUnit]) -> TokenCounts:
        """Count each conversation once; ``row_tokens`` is the mean, as passes are filled by tokens, not by rows."""
        prompts = responses = rows = 0
        wanted = {index for unit in units for index in unit.conversation_indices or ()}
        for given in self.conversations:
            if given.conversation_index not in wanted:
                continue
            rows += given.num_turns
            prompts += prompt_tokens(len(given.system_prompt.split()))
            for message in given.messages:
                tokens = word_tokens(len(message.content.split()))
                if message.role == "assistant" and not given.is_prompt:
                    responses += tokens
                else:
                    prompts += tokens + TEMPLATE_TOKENS
        return TokenCounts(prompts, responses, (prompts + responses) // rows)

    def _of(self, unit: WorkUnit) -> tuple[Conversation, ...]:
        assert unit.conversation_indices is not None
        return tuple(self._at(index) for index in dict.fromkeys(unit.conversation_indices))

    def _at(self, conversation_index: int) -> Conversation:
        """Return a conversation by its index in the input, in which those that were left out are counted."""
        place = bisect_left(self.conversations, conversation_index, key=lambda given: given.conversation_index)
        return self.conversations[place]


def _texts(message: Message) -> list[str]:
    """Return what a message is made of: role, content, other keys, and reasoning that no other key holds."""
    texts = [message.role, message.content, message.extra]
    if message.reasoning is None:
        return texts
    beside = reasoning_beside(json.loads(message.extra or "{}"))
    return texts if beside is not None and beside[1] == message.reasoning else [*texts, message.reasoning]


def _batches(conversations: Iterator[Conversation], sizes: RowSizes, max_context: int) -> Iterator[list[Conversation]]:
    """Divide conversations into batches within a unit's limits; a single longer conversation is a batch of its own."""
    most_rows = min(ROWS_PER_UNIT, sizes.most_rollouts)
    batch: list[Conversation] = []
    rows = tokens = 0
    for given in conversations:
        more = _about_tokens(given, max_context)
        if batch and (rows + given.num_turns > most_rows or tokens + more > sizes.most_tokens):
            yield batch
            batch, rows, tokens = [], 0, 0
        batch.append(given)
        rows, tokens = rows + given.num_turns, tokens + more
    if batch:
        yield batch


def _refuse_too_long(given: Conversation, sizes: RowSizes, max_context: int) -> None:
    """Refuse a conversation that exceeds the limits of a unit, because it cannot be divided between units."""
    if given.num_turns > sizes.most_rollouts:
        raise InputError(
            f"has {given.num_turns} messages of the assistant; a unit of {BLOCK_BYTES_LIMIT // 2**20} MiB holds "
            f"{sizes.most_rollouts} ({given.place}).",
            code="too_many",
            field="messages",
            hint="Cut the conversation in two, or capture fewer layers.",
        )
    tokens = _about_tokens(given, max_context)
    if tokens > sizes.most_tokens:
        raise sizes.refuse_tokens(tokens, f"the assistant's messages in {given.place}", "cut the conversation")


def _about_tokens(given: Conversation, max_context: int) -> int:
    """Estimate the tokens of a conversation's responses; one longer than the context is refused when it is rendered."""
    return min(-(-_most_tokens(given, max_context) // BYTES_PER_TOKEN), max_context)


def _most_tokens(given: Conversation, max_context: int) -> int:
    """Bound the tokens of a conversation's responses.

    A text has no more tokens than bytes, and at each end of a response one token may be shared with the template. The
    response of a prompt is empty.
    """
    if given.is_prompt:
        return 0
    num_bytes = sum(len(message.content.encode()) + 2 for message in given.messages if message.role == "assistant")
    return min(num_bytes, max_context)
