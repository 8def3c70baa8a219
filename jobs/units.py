"""Rollout addresses, work units and seeds. Pure; the same spec gives the same of each, wherever it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from .interventions import Intervention
from .personas import Kind, Polarity
from .sources.conversation import Conversation


@dataclass(frozen=True, slots=True, order=True)
class RolloutAddress:
    """Where one rollout stands in the design: persona, polarity, prompt, question, sample.

    Attributes:
        turn_index: Of a given conversation's response, its place among the messages; None for what is generated.
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
        """Derive this rollout's own 63-bit seed, so that no batch or order changes what is sampled.

        Example:
            >>> address = RolloutAddress("role", "pirate", "pos", 0, 0, 0)
            >>> address.seed(0) == address.seed(0) != address.seed(1)
            True
        """
        digest = hashlib.blake2b(f"{job_seed}:{self}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """What is done, written and committed as one: a block of questions of one persona, polarity and prompt.

    Attributes:
        unit_id: Readable and unique in the run; also the name of its files.
        question_indices: Its questions, ascending.
        samples: Rollouts per question.
    """

    unit_id: str
    kind: Kind
    persona: str
    polarity: Polarity
    prompt_index: int
    question_indices: tuple[int, ...]
    samples: int

    @property
    def num_rollouts(self) -> int:
        """How many rollouts, hence rows, it makes."""
        return len(self.question_indices) * self.samples

    def addresses(self) -> Iterator[RolloutAddress]:
        """Give its rollouts in row order: by question, then by sample."""
        for question_index in self.question_indices:
            for sample_index in range(self.samples):
                yield RolloutAddress(
                    self.kind, self.persona, self.polarity, self.prompt_index, question_index, sample_index
                )


@dataclass(frozen=True, slots=True)
class ConversationUnit(WorkUnit):
    """A unit of given conversations, each with as many rollouts as the assistant speaks.

    ``question_indices`` has an entry a conversation here, in the order of the rows, and ``samples`` is 1.

    Attributes:
        sample_indices: Of each conversation.
        conversation_indices: Of each conversation, its place in the whole input.
        turn_indices: Of each conversation, the places of the assistant's messages, ascending.
    """

    sample_indices: tuple[int, ...]
    conversation_indices: tuple[int, ...]
    turn_indices: tuple[tuple[int, ...], ...]

    @property
    def num_rollouts(self) -> int:
        """How many rollouts, hence rows, it makes."""
        return sum(len(turns) for turns in self.turn_indices)

    def addresses(self) -> Iterator[RolloutAddress]:
        """Give its rollouts in row order: by conversation, then by turn."""
        design = (self.kind, self.persona, self.polarity, self.prompt_index)
        for question, sample, turns in zip(self.question_indices, self.sample_indices, self.turn_indices, strict=True):
            for turn in turns:
                yield RolloutAddress(*design, question, sample, turn)

    def conversations_of_rows(self) -> Iterator[int]:
        """Give each row's conversation_index, in row order."""
        for conversation_index, turns in zip(self.conversation_indices, self.turn_indices, strict=True):
            for _ in turns:
                yield conversation_index


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """All that a worker must know to make one rollout.

    Attributes:
        system_prompt: ``""`` for none.
        seed: Of this rollout alone.
        given: The conversation whose turn ``address.turn_index`` it is; None for what is to be generated.
        intervention: What is changed in the model meanwhile; None for nothing.
    """

    address: RolloutAddress
    system_prompt: str
    question: str
    seed: int
    given: Conversation | None = None
    intervention: Intervention | None = None


class UnitTexts(Protocol):
    """The words of a unit, each once: with these no worker needs the catalog or the conversations' files."""

    def requests(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Give the unit's rollouts with their words, in row order."""
        ...


@dataclass(frozen=True, slots=True)
class AskedTexts:
    """What a unit's rollouts are told and asked, where the answers are to be generated.

    Attributes:
        system_prompt: Of all of them; ``""`` for none.
        questions: By ``WorkUnit.question_indices``.
        job_seed: Each rollout's own seed is derived from it.
    """

    system_prompt: str
    questions: tuple[str, ...]
    job_seed: int

    def requests(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Give the unit's rollouts, in row order."""
        question_of = dict(zip(unit.question_indices, self.questions, strict=True))
        for address in unit.addresses():
            question = question_of[address.question_index]
            yield RolloutRequest(address, self.system_prompt, question, address.seed(self.job_seed))


@dataclass(frozen=True, slots=True)
class GivenTexts:
    """The conversations that a unit reads.

    Attributes:
        conversations: In the unit's order.
    """

    conversations: tuple[Conversation, ...]

    def requests(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Give the assistant's turns, in row order."""
        turns = ((given, turn) for given in self.conversations for turn in given.turn_indices())
        for address, (given, turn) in zip(unit.addresses(), turns, strict=True):
            yield RolloutRequest(address, given.system_prompt, given.question_before(turn), 0, given)


@dataclass(frozen=True, slots=True)
class UnitAttempt:
    """One attempt at one unit, as it is handed to a worker.

    Attributes:
        texts: Its words; the requests are made of them where they are needed.
        number: 1 for the first attempt at the unit.
        row_block: The block of store rows that this attempt alone may write.
        is_suspect: Whether it failed before and may have been to blame; its worker is given nothing beside it.
    """

    unit: WorkUnit
    texts: UnitTexts
    number: int
    row_block: int
    is_suspect: bool = False

    def requests(self) -> Iterator[RolloutRequest]:
        """Give what is to be done, rollout by rollout, in row order."""
        return self.texts.requests(self.unit)
