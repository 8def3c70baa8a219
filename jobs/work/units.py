"""Work units and their requests. Pure and deterministic: a spec determines all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Protocol

from ..conversation import Conversation
from ..dialogues.simulated_user import UserTurn
from ..interventions import Intervention
from ..messages import ChatMessage
from ..personas import Kind, Polarity
from .addresses import RolloutAddress
from .rollouts import Rollout


@lru_cache(maxsize=4096)
def question_columns(
    question_indices: tuple[int, ...], samples: int, first_sample: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Expand questions to rows: by question, then by sample.

    Cached, so that the units of a job, thousands of which have the same questions, share the tuples in memory.

    Args:
        question_indices: The questions, in order, each once.
        samples: Number of rollouts per question.
        first_sample: Sample index of the first rollout of each question.

    Returns:
        The question_index and the sample_index of each row.
    """
    if samples == 1:
        return question_indices, (first_sample,) * len(question_indices)
    questions = tuple(question for question in question_indices for _ in range(samples))
    return questions, tuple(range(first_sample, first_sample + samples)) * len(question_indices)


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Rollouts of one persona, polarity and prompt that are run, written and committed together.

    The columns have one entry per row, in row order.

    Attributes:
        unit_id: Readable id, unique in the run; also part of the names of its objects in the store.
        kind: Kind of the persona; ``conversation`` for texts without one.
        persona: Name of the persona within its kind, or of the file of given texts.
        polarity: ``neg`` for the opposite of a trait.
        prompt_index: Index of the persona's system prompt.
        question_indices: The question of each row.
        sample_indices: The sample of each row.
        turn_indices: The turn of each row; None if every row is the single response to a question.
        conversation_indices: The conversation of each row, by its index in the job's input; rows of the same
            conversation are adjacent. None if the rows are not turns of conversations.
    """

    unit_id: str
    kind: Kind
    persona: str
    polarity: Polarity
    prompt_index: int
    question_indices: tuple[int, ...]
    sample_indices: tuple[int, ...]
    turn_indices: tuple[int, ...] | None = None
    conversation_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        columns = (self.question_indices, self.sample_indices, self.turn_indices, self.conversation_indices)
        lengths = {len(column) for column in columns if column is not None}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"{self.unit_id} has no rows, or columns of different lengths")

    @classmethod
    def of_questions(
        cls,
        unit_id: str,
        kind: Kind,
        persona: str,
        polarity: Polarity,
        prompt_index: int,
        question_indices: tuple[int, ...],
        samples: int,
        first_sample: int = 0,
    ) -> WorkUnit:
        """Make a unit with the same number of samples for each of its questions.

        Args:
            unit_id: Readable id, unique in the run.
            kind: Kind of the persona: role, trait or default.
            persona: Name of the persona within its kind.
            polarity: ``neg`` for the opposite of a trait.
            prompt_index: Index of the persona's system prompt.
            question_indices: The questions, ascending, each once.
            samples: Number of rollouts per question.
            first_sample: Sample index of the first rollout of each question.
        """
        columns = question_columns(question_indices, samples, first_sample)
        return cls(unit_id, kind, persona, polarity, prompt_index, *columns)

    @property
    def num_rollouts(self) -> int:
        """Number of rollouts, hence of rows."""
        return len(self.question_indices)

    def addresses(self) -> Iterator[RolloutAddress]:
        """Yield the address of each row, in row order."""
        turns = self.turn_indices or (None,) * self.num_rollouts
        for question, sample, turn in zip(self.question_indices, self.sample_indices, turns, strict=True):
            yield RolloutAddress(self.kind, self.persona, self.polarity, self.prompt_index, question, sample, turn)


@dataclass(frozen=True, slots=True)
class GivenResponse:
    """An existing response, with its whole conversation, so that one pass can capture all turns of it.

    The response of a prompt (``Conversation.is_prompt``) is empty, and its place is after the last turn.

    Attributes:
        conversation: The conversation that contains the response.
        turn_index: Index of the response among the conversation's turns, system messages not counted.
    """

    conversation: Conversation
    turn_index: int

    @property
    def text(self) -> str:
        """Text of the response."""
        return self.conversation.response(self.turn_index)

    @property
    def extra(self) -> str:
        """Additional keys of the conversation and of this message in the input, as JSON."""
        return self.conversation.extra_of(self.turn_index)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response of another run, by the token ids that it has there.

    Attributes:
        text: Text of the response.
        prompt_token_ids: Token ids of everything before it.
        content_token_ids: Token ids of its content, without the token that ends the turn; at least one.
    """

    text: str
    prompt_token_ids: tuple[int, ...]
    content_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Everything that a worker needs to make one rollout.

    Attributes:
        address: Address of the rollout; unique among the requests of a job.
        messages: The chat up to the response, system prompt and earlier turns included.
        seed: 63-bit seed of the rollout; 0 for an existing response.
        given: The existing response; None if it is to be generated.
        intervention: Edits of the residual stream while the model runs; None for none.
        choices: Texts of which the response must be one, as a judge's reply; empty for any response. The built-in
            engine follows it, vLLM's refuses it. No source makes such requests.
        stored: The existing response by its token ids; None if it is to be generated, or is ``given``.
        conversation_index: Index of the conversation in the job's input, which its rollout gets; None where the rollout
            is a single response.
        extra: Additional keys of the conversation in the input, as JSON, which its rollout gets.
        user: What a simulated user is asked first; its message is then the last one of the chat. None where the chat is
            complete.
        is_reached: Whether the conversation came so far; if not, nobody is asked, and its row is empty
            (``not_reached``).
        goes_on: Whether another turn of its conversation is to follow.
        is_follow_up: Whether a reply of this job goes before it in its conversation. Such a conversation may end where
            the turn does not fit the context; a first turn that does not fit is refused, whatever history it has.
    """

    address: RolloutAddress
    messages: tuple[ChatMessage, ...]
    seed: int
    given: GivenResponse | None = None
    intervention: Intervention | None = None
    choices: tuple[str, ...] = ()
    stored: StoredResponse | None = None
    conversation_index: int | None = None
    extra: str = ""
    user: UserTurn | None = None
    is_reached: bool = True
    is_follow_up: bool = False
    goes_on: bool = False

    @property
    def system_prompt(self) -> str:
        """The first system message; ``""`` if there is none."""
        return next((message.content for message in self.messages if message.role == "system"), "")

    @property
    def question(self) -> str:
        """The last user message before the response; ``""`` if there is none."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def opening(self) -> tuple[ChatMessage, ...]:
        """The system messages at the start of the chat, which all requests of the same persona and prompt share."""
        return tuple(takewhile(lambda message: message.role == "system", self.messages))


class UnitRequests(Protocol):
    """The texts of one unit, from which the worker makes its requests. Pickled and sent to the worker.

    A conversation of several generated turns (a drift study, for instance) is a chain of requests: the first is made at
    once, and each later one when the reply before it is known.
    """

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make the requests that do not depend on a reply.

        Args:
            unit: The unit that these texts belong to.

        Yields:
            Requests in row order: one per row, or one per conversation if its turns are generated.
        """
        ...

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Make the follow-up request of a conversation.

        Args:
            request: A request of this unit.
            rollout: The rollout that answered it.

        Returns:
            A request whose messages include the reply; None after the last row of the conversation. A conversation that
            is over before has requests with ``is_reached`` False for the rows that are left.
        """
        ...


@dataclass(frozen=True, slots=True)
class UnitAttempt:
    """One attempt at one unit, as it is assigned to a worker.

    Attributes:
        unit: The unit.
        requests: The unit's texts.
        number: Number of the attempt, from 1.
        row_block: Row block of the store that only this attempt writes.
        is_suspect: Whether the unit has failed before, so that it may be the cause; it is then run alone on its worker.
    """

    unit: WorkUnit
    requests: UnitRequests
    number: int
    row_block: int
    is_suspect: bool = False

    def first_requests(self) -> Iterator[RolloutRequest]:
        """Make the requests that do not depend on a reply, in row order."""
        return self.requests.first(self.unit)
