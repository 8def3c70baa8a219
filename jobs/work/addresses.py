"""Where a rollout stands in the design of a job, and the seed that follows from it. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..personas import Kind, Polarity


@dataclass(frozen=True, slots=True, order=True)
class RolloutAddress:
    """The address of one rollout: persona, polarity, prompt, question, sample and turn. Unique within a run.

    Attributes:
        kind: Kind of the persona; ``conversation`` for a given text without one.
        persona: Name of the persona within its kind, or of the file of a given text.
        polarity: ``neg`` for the opposite of a trait.
        prompt_index: Index of the persona's system prompt.
        question_index: Index of the question.
        sample_index: Counts rollouts of the same prompt and question.
        turn_index: Index of the response among the messages of its conversation, the system prompt not counted; None
            for the single response to a question.
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
        """Derive the 63-bit seed of this rollout, so that its samples depend neither on its batch nor on scheduling.

        Args:
            job_seed: Seed of the spec.

        Example:
            >>> address = RolloutAddress("role", "pirate", "pos", 0, 0, 0)
            >>> address.seed(0) == address.seed(0) != address.seed(1)
            True
        """
        digest = hashlib.blake2b(f"{job_seed}:{self}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1
