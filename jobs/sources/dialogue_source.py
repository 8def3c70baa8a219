"""The source for dialogues: conversations whose turns are generated one after another. Pure.

A dialogue is never divided between units, so it is committed whole or done again whole. Each of its responses is a row
whose address has the response's turn, and its seed follows from that address.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..conversation import Conversation
from ..dialogues.simulated_user import SimulatedUser, UserTurn, mirrored
from ..errors import InputError
from ..messages import ChatMessage
from ..personas import Kind, Polarity
from ..specs.spec import JobSpec
from ..text_tokens import TEMPLATE_TOKENS, prompt_tokens, word_tokens
from ..work.addresses import RolloutAddress
from ..work.rollouts import Rollout
from ..work.unit_size import BLOCK_BYTES_LIMIT, RowSizes
from ..work.units import RolloutRequest, WorkUnit
from .reading.problems import Problem
from .source import TokenCounts
from .turn_units import turn_units

ROWS_PER_UNIT = 64
"""Most rows of a unit of several dialogues, so that a stopped run loses little work: a dialogue is slow, because its
turns wait for one another."""

RETOKENISED = 2
"""Bound of a server's response in multiples of ``max_new_tokens``: its text is tokenised again here, which may give
more tokens than the server sampled."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation to be had with the model.

    Attributes:
        kind: Kind of the persona that it counts for; ``conversation`` for none.
        persona: Name of the persona; of a prompts file the category, or the file's name.
        prompt_index: Index of the persona's system prompt, or another division of a persona's dialogues into units.
        question_index: Index of the dialogue among those of its persona.
        conversation_index: Index of the dialogue in the job, from 0.
        system_prompt: The system prompt; ``""`` for none.
        turns: What the user says, message by message; each is answered before the next is said. Empty where the user is
            simulated.
        history: Messages of user and assistant between the system prompt and the first of ``turns``, which exist
            already and are no rows.
        sample_index: Counts dialogues of the same prompt and question.
        polarity: ``neg`` for the opposite of a trait.
        extra: What else belongs to it, as a JSON object in text form; every row of it has a copy. ``""`` for nothing.
        place: Where it was read, for error messages.
        user: Who plays the user; None where the turns are scripted.

    Example:
        >>> Dialogue("conversation", "talks", 0, 0, 0, "", ("Who are you?", "Since when?")).turn_indices
        (1, 3)
    """

    kind: Kind
    persona: str
    prompt_index: int
    question_index: int
    conversation_index: int
    system_prompt: str
    turns: tuple[str, ...] = ()
    history: tuple[ChatMessage, ...] = ()
    sample_index: int = 0
    polarity: Polarity = "pos"
    extra: str = ""
    place: str = ""
    user: SimulatedUser | None = None

    def __post_init__(self) -> None:
        if bool(self.turns) == (self.user is not None):
            raise ValueError("a dialogue has either turns or a simulated user")

    @property
    def num_rows(self) -> int:
        """Number of responses, hence of rows."""
        return len(self.turns) if self.user is None else self.user.exchanges

    @property
    def turn_indices(self) -> tuple[int, ...]:
        """Index of each response among the messages, system messages not counted."""
        first = len(self.history) + 1
        return tuple(range(first, first + 2 * self.num_rows, 2))

    @property
    def opening(self) -> tuple[ChatMessage, ...]:
        """The messages before the first of ``turns``."""
        system = (ChatMessage("system", self.system_prompt),) if self.system_prompt else ()
        return (*system, *self.history)

    def address(self, turn_index: int) -> RolloutAddress:
        """Return the address of one of its responses.

        Args:
            turn_index: One of ``turn_indices``.
        """
        return RolloutAddress(
            self.kind,
            self.persona,
            self.polarity,
            self.prompt_index,
            self.question_index,
            self.sample_index,
            turn_index,
        )


@dataclass(frozen=True, slots=True)
class DialogueRequests:
    """The dialogues of a unit.

    Attributes:
        dialogues: The dialogues, in the order of the unit's rows.
        job_seed: Seed of the spec, from which the seed of each rollout is derived.
    """

    dialogues: tuple[Dialogue, ...]
    job_seed: int

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make the request for the first response of every dialogue; see ``UnitRequests.first``."""
        return (self._request(dialogue, 0, dialogue.opening) for dialogue in self.dialogues)

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Make the request for the next response: the chat so far, the reply, and what the user says to it.

        After a turn that was not reached, none is; see ``UnitRequests.following``.
        """
        dialogue = self._of(request.address)
        number = dialogue.turn_indices.index(rollout.address.turn_index or 0) + 1
        if number == dialogue.num_rows:
            return None
        if not rollout.is_reached:
            return replace(self._request(dialogue, number, dialogue.opening), is_reached=False, user=None)
        # What a simulated user said is in the rollout only.
        asked = (ChatMessage("user", rollout.question),) if request.user is not None else ()
        reply = ChatMessage("assistant", rollout.response)
        return self._request(dialogue, number, (*request.messages, *asked, reply))

    def _request(self, dialogue: Dialogue, number: int, before: tuple[ChatMessage, ...]) -> RolloutRequest:
        """Make the request for one response.

        Args:
            dialogue: The dialogue.
            number: Which of its responses, from 0.
            before: The chat before the user's message.
        """
        turn_index = dialogue.turn_indices[number]
        address = dialogue.address(turn_index)
        user: UserTurn | None = None
        messages = before
        if dialogue.user is None:
            messages = (*before, ChatMessage("user", dialogue.turns[number]))
        else:
            # The place of the user's message, which no response has.
            seed = dialogue.address(turn_index - 1).seed(self.job_seed)
            user = UserTurn(mirrored(dialogue.user.instructions, before), seed)
        return RolloutRequest(
            address,
            messages,
            address.seed(self.job_seed),
            conversation_index=dialogue.conversation_index,
            extra=dialogue.extra,
            user=user,
            is_follow_up=number > 0,
            goes_on=number + 1 < dialogue.num_rows,
        )

    def _of(self, address: RolloutAddress) -> Dialogue:
        place = (address.question_index, address.sample_index)
        return next(one for one in self.dialogues if (one.question_index, one.sample_index) == place)


@dataclass(frozen=True)
class DialogueSource:
    """A source of dialogues.

    Attributes:
        dialogues: All dialogues, by ascending conversation_index; no two have the same address.
        spec: Sampling, seed, and whether a server generates.
        field: Field of the spec that asks for them, for errors.
        notes: What a user should know of the input, a sentence each.
    """

    dialogues: tuple[Dialogue, ...]
    spec: JobSpec
    field: str = "prompts.source"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[RolloutAddress] = set()
        for index, dialogue in enumerate(self.dialogues):
            address = dialogue.address(0)
            if address in seen or dialogue.conversation_index != index:
                raise ValueError(f"dialogue {index} has an index or an address that is not its own: {address}")
            seen.add(address)

    @property
    def generates(self) -> bool:
        """True: every response is generated, by the workers or by a server."""
        return True

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """Always empty: none exists yet."""
        return ()

    @property
    def skipped(self) -> tuple[Problem, ...]:
        """Always empty: a dialogue that cannot be read is refused."""
        return ()

    def units(self, sizes: RowSizes, max_context: int) -> Iterator[WorkUnit]:
        """Divide the dialogues into units; see ``RequestSource.units``.

        Raises:
            InputError: A dialogue has more turns or tokens than a unit may have.
        """
        for dialogue in self.dialogues:
            self._refuse_too_long(dialogue, sizes)
        yield from turn_units(self.dialogues, lambda one: one.turn_indices, lambda group: self._batches(group, sizes))

    def requests(self, unit: WorkUnit) -> DialogueRequests:
        """Return the dialogues of a unit."""
        return DialogueRequests(self._of(unit), self.spec.seed)

    def identity(self, unit: WorkUnit) -> bytes:
        """Return the texts of a unit's dialogues as JSON; see ``RequestSource.identity``."""
        lines: list[str] = []
        for one in self._of(unit):
            history = [[message.role, message.content] for message in one.history]
            user = [] if one.user is None else [[one.user.instructions, one.user.exchanges]]
            lines.append(json.dumps([unit.unit_id, one.system_prompt, history, one.turns, one.extra, *user]))
        return "".join(lines).encode()

    def most_tokens(self, unit: WorkUnit, max_context: int) -> int:
        """Return the content tokens of a unit's responses if each has the maximum length."""
        return unit.num_rollouts * self._longest_response

    def longest_prompt(self, units: Sequence[WorkUnit], size: Callable[[str], int]) -> int:
        """Return the size of the longest first prompt: a dialogue that outgrows the context later just ends."""
        return max((_size_before(one, size) + size("".join(one.turns[:1])) for one in self._all(units)), default=0)

    def token_counts(self, units: Sequence[WorkUnit]) -> TokenCounts:
        """Count prompts, each with all messages before it, and responses at their maximum length."""
        new = self.spec.sampling.max_new_tokens
        prompts = repeated = rows = longest = 0
        for one in self._all(units):
            tokens = prompt_tokens(_size_before(one, _num_words))
            for place, said in enumerate(self._message_tokens(one)):
                repeated += tokens if place else 0
                tokens += said
                prompts += tokens
                tokens += new + TEMPLATE_TOKENS
            rows += one.num_rows
            longest = max(longest, tokens)
        user = self.spec.drift.user.max_new_tokens if self.spec.drift is not None else 0
        read, written, read_again = self._user_tokens(units, user)
        return TokenCounts(prompts, rows * new, longest, read, written, repeated, read_again)

    def _message_tokens(self, dialogue: Dialogue) -> list[int]:
        """Estimate the tokens of each of the user's messages; of a simulated user's at most."""
        if dialogue.user is not None:
            assert self.spec.drift is not None
            return [self.spec.drift.user.max_new_tokens] * dialogue.num_rows
        return [word_tokens(_num_words(turn)) for turn in dialogue.turns]

    def _user_tokens(self, units: Sequence[WorkUnit], most: int) -> tuple[int, int, int]:
        """Estimate the tokens that the model of a simulated user reads, writes at most, and reads again."""
        read = written = repeated = 0
        for one in self._all(units):
            if one.user is None:
                continue
            first = prompt_tokens(_num_words(one.user.instructions))
            each = self.spec.sampling.max_new_tokens + most + TEMPLATE_TOKENS
            read += one.num_rows * first + each * (one.num_rows * (one.num_rows - 1) // 2)
            written += one.num_rows * most
            # Each prompt but the last, with the message that follows, is the beginning of the next.
            repeated += (one.num_rows - 1) * (first + most) + each * ((one.num_rows - 1) * (one.num_rows - 2) // 2)
        return read, written, repeated

    def _all(self, units: Iterable[WorkUnit]) -> Iterator[Dialogue]:
        return (dialogue for unit in units for dialogue in self._of(unit))

    def _of(self, unit: WorkUnit) -> tuple[Dialogue, ...]:
        assert unit.conversation_indices is not None
        return tuple(self.dialogues[index] for index in dict.fromkeys(unit.conversation_indices))

    @cached_property
    def _longest_response(self) -> int:
        """Most tokens of a response; more for a server's, whose text is tokenised again."""
        return self.spec.sampling.max_new_tokens * (RETOKENISED if self.spec.generation else 1)

    def _batches(self, dialogues: Iterable[Dialogue], sizes: RowSizes) -> Iterator[list[Dialogue]]:
        """Divide dialogues into batches within a unit's limits; a single longer one is a batch of its own."""
        most = min(ROWS_PER_UNIT, sizes.most_rollouts, sizes.most_tokens // self._longest_response)
        batch: list[Dialogue] = []
        rows = 0
        for dialogue in dialogues:
            if batch and rows + dialogue.num_rows > most:
                yield batch
                batch, rows = [], 0
            batch.append(dialogue)
            rows += dialogue.num_rows
        if batch:
            yield batch

    def _refuse_too_long(self, dialogue: Dialogue, sizes: RowSizes) -> None:
        """Refuse a dialogue that exceeds the limits of a unit, because it cannot be divided between units."""
        rows, place = dialogue.num_rows, f" ({dialogue.place})" if dialogue.place else ""
        if rows > sizes.most_rollouts:
            raise InputError(
                f"has a conversation of {rows} responses; a unit of {BLOCK_BYTES_LIMIT // 2**20} MiB holds "
                f"{sizes.most_rollouts}{place}.",
                code="too_many",
                field=self.field,
                hint="Ask for fewer turns, or capture fewer layers.",
            )
        tokens = rows * self._longest_response
        if tokens > sizes.most_tokens:
            what = f"{rows} responses of up to {self._longest_response} tokens in one conversation{place}"
            raise sizes.refuse_tokens(tokens, what, "ask for fewer turns, or lower sampling.max_new_tokens")


def _size_before(dialogue: Dialogue, size: Callable[[str], int]) -> int:
    """Return the size of the messages before the user's first."""
    return sum(size(message.content) for message in dialogue.opening)


def _num_words(text: str) -> int:
    return len(text.split())
