"""Rollout addresses, work units, requests and seeds. Pure; the same spec gives the same of each, wherever it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from .conversation import Conversation
from .interventions import Intervention
from .messages import ChatMessage
from .personas import Kind, Polarity

if TYPE_CHECKING:
    from .rollouts import Rollout


@dataclass(frozen=True, slots=True, order=True)
class RolloutAddress:
    """Where one rollout stands in the design: persona, polarity, prompt, question, sample.

    Attributes:
        turn_index: Place of a response among the messages of its conversation, the system prompt not counted;
            None for the single response to a question.
    """

    kind: Kind
    persona: str
    polarity: Polarity
    prompt_index: int
    question_index: int
    sample_index: int
    turn_index: int | None = None

    def __str__(self) -> str:
        turn = "" if self.turn_index is None else f"/turn{self.turn_index}"
        return (
            f"{self.kind}/{self.persona}/{self.polarity}"
            f"/prompt{self.prompt_index}/question{self.question_index}/sample{self.sample_index}{turn}"
        )

    def seed(self, job_seed: int) -> int:
        """Derive this rollout's own 63-bit seed, so that what is sampled depends on no batch and no order.

        Args:
            job_seed: The spec's.

        Example:
            >>> address = RolloutAddress("role", "pirate", "pos", 0, 0, 0)
            >>> address.seed(0) == address.seed(0) != address.seed(1)
            True
        """
        digest = hashlib.blake2b(f"{job_seed}:{self}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@lru_cache(maxsize=4096)
def question_columns(question_indices: tuple[int, ...], samples: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lay questions out as rows: by question, then by sample.

    Equal arguments give the very same tuples, so that the units of a job, thousands of which ask the same questions,
    share their columns.

    Args:
        question_indices: The questions, in order, each once.
        samples: Rollouts of each question.

    Returns:
        The question_index and the sample_index of each row.
    """
    if samples == 1:
        return question_indices, (0,) * len(question_indices)
    questions = tuple(question for question in question_indices for _ in range(samples))
    return questions, tuple(range(samples)) * len(question_indices)


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Rollouts of one persona, polarity and prompt that are made, written and committed as one.

    Its columns have one entry for each row, in row order.

    Attributes:
        unit_id: Readable and unique in the run; also the name of its files.
        question_indices: The question of each row.
        sample_indices: The sample of each row.
        turn_indices: The turn of each row; None where every row is the single response to a question.
        conversation_indices: The conversation of each row, by its place in the job's input; rows of one conversation
            follow one another. None where the rows are not of conversations.
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
    ) -> WorkUnit:
        """Make a unit that asks each of its questions the same number of times.

        Args:
            unit_id: Readable and unique in the run.
            kind: What the persona is: a role, a trait or the default.
            persona: Name of the persona within its kind.
            polarity: ``neg`` for a trait's opposite.
            prompt_index: Which of the persona's system prompts.
            question_indices: The questions, ascending, each once.
            samples: Rollouts of each question.
        """
        columns = question_columns(question_indices, samples)
        return cls(unit_id, kind, persona, polarity, prompt_index, *columns)

    @property
    def num_rollouts(self) -> int:
        """Rollouts, hence rows."""
        return len(self.question_indices)

    def addresses(self) -> Iterator[RolloutAddress]:
        """Yield the address of each row, in row order."""
        turns = self.turn_indices or (None,) * self.num_rollouts
        for question, sample, turn in zip(self.question_indices, self.sample_indices, turns, strict=True):
            yield RolloutAddress(self.kind, self.persona, self.polarity, self.prompt_index, question, sample, turn)


@dataclass(frozen=True, slots=True)
class GivenResponse:
    """A response that exists already. The whole conversation is here, so that one pass can read all of its turns.

    Attributes:
        conversation: The conversation that holds it.
        turn_index: Its place among the conversation's messages.
    """

    conversation: Conversation
    turn_index: int

    @property
    def text(self) -> str:
        """The response itself."""
        return self.conversation.messages[self.turn_index].content

    @property
    def extra(self) -> str:
        """The input's other keys, of the conversation and of this message, as JSON."""
        return self.conversation.extra_of(self.turn_index)


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Everything a worker needs to make one rollout.

    Attributes:
        address: Where the rollout stands in the design; unique among the requests of a job.
        messages: The chat up to the response: system, user, assistant, as far as it has come.
        seed: The rollout's own seed, 63 bits; 0 for a response that exists.
        given: The response, where it exists already; None where it is to be generated.
        intervention: Edits of the model's residual stream while it runs; None for none.
    """

    address: RolloutAddress
    messages: tuple[ChatMessage, ...]
    seed: int
    given: GivenResponse | None = None
    intervention: Intervention | None = None

    @property
    def system_prompt(self) -> str:
        """The first system message; ``""`` where there is none."""
        return next((message.content for message in self.messages if message.role == "system"), "")

    @property
    def question(self) -> str:
        """The last message of the user before the response; ``""`` where there is none."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def opening(self) -> tuple[ChatMessage, ...]:
        """The system messages that the chat begins with: what requests of one persona and prompt have in common."""
        return tuple(takewhile(lambda message: message.role == "system", self.messages))


class UnitRequests(Protocol):
    """The texts of one unit, from which its requests are made where they are needed. Travels to the worker, pickled.

    A conversation whose turns are generated is a chain of requests: the first can be made at once, each later one only
    when the reply before it is known.
    """

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make the requests that wait for no reply.

        Args:
            unit: The unit whose texts these are.

        Yields:
            Requests in row order; where no turn follows another, one for each row.
        """
        ...

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Make the next request of a conversation.

        Args:
            request: A request of this unit.
            rollout: What it was answered with.

        Returns:
            A request whose messages hold the reply; None where the conversation ends.
        """
        ...


@dataclass(frozen=True, slots=True)
class UnitAttempt:
    """One attempt at one unit, as it is handed to a worker.

    Attributes:
        unit: The unit.
        requests: Its texts.
        number: 1 for the first attempt at the unit.
        row_block: The row block of the store that this attempt alone may write.
        is_suspect: Whether the unit failed before and may have been to blame; its worker is given nothing beside it.
    """

    unit: WorkUnit
    requests: UnitRequests
    number: int
    row_block: int
    is_suspect: bool = False

    def first_requests(self) -> Iterator[RolloutRequest]:
        """Make the requests that wait for no reply, in row order."""
        return self.requests.first(self.unit)
