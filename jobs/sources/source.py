"""The protocol of sources: what a plan needs to know about where the texts of a job come from. Pure.

A source makes the work units and, for each of them, the requests that a worker answers. A new kind of job (a drift
study, a sweep over interventions) is a new source, opened in ``load.py``: plans, estimates, workers and stores depend
on this protocol only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..conversation import Conversation
from ..work.unit_size import RowSizes
from ..work.units import UnitRequests, WorkUnit
from .problems import Problem


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Estimated tokens of a job, from the number of words in its texts.

    Attributes:
        prompt_tokens: Tokens of all prompts, roughly.
        response_tokens: Tokens of all responses: of generated ones at most, of existing ones roughly.
        row_tokens: Tokens of the rollout (prompt and response) that batches are sized by.
        user_prompt_tokens: Tokens that the model of a simulated user reads; 0 without one.
        user_response_tokens: Tokens of its messages, at most.
        repeated_tokens: Of ``prompt_tokens``, those that repeat earlier turns of a conversation that is generated.
        user_repeated_tokens: The same of ``user_prompt_tokens``.
    """

    prompt_tokens: int
    response_tokens: int
    row_tokens: int
    user_prompt_tokens: int = 0
    user_response_tokens: int = 0
    repeated_tokens: int = 0
    user_repeated_tokens: int = 0


class RequestSource(Protocol):
    """Makes the units of a job and their requests.

    A source is deterministic: its input determines the units, their order, and every address, seed and text.
    """

    @property
    def generates(self) -> bool:
        """Whether the responses are generated; False if they exist already and are only captured."""
        ...

    @property
    def conversations(self) -> Sequence[Conversation]:
        """The existing conversations, all of which the model's chat template must be able to render; empty for none."""
        ...

    @property
    def skipped(self) -> Sequence[Problem]:
        """Entries of the input that were left out because they cannot be read; empty for none."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of the input, a sentence each."""
        ...

    def units(self, sizes: RowSizes, max_context: int) -> Iterable[WorkUnit]:
        """Divide the job into units, in the order of the plan.

        Args:
            sizes: Limits on the size of a unit.
            max_context: Longest sequence that the model takes, in tokens.

        Raises:
            InputError: The source lacks something that the spec names, or something that must not be divided exceeds
                the limits.
        """
        ...

    def requests(self, unit: WorkUnit) -> UnitRequests:
        """Return the texts of a unit, from which its requests are made."""
        ...

    def identity(self, unit: WorkUnit) -> bytes:
        """Return every text of a unit in a canonical form; the plan's digest is taken over these bytes."""
        ...

    def most_tokens(self, unit: WorkUnit, max_context: int) -> int:
        """Return an upper bound of the content tokens of all responses of a unit.

        Args:
            unit: A unit of this source.
            max_context: Longest sequence that the model takes, in tokens.
        """
        ...

    def longest_prompt(self, units: Sequence[WorkUnit], size: Callable[[str], int]) -> int:
        """Return the size of the longest prompt, its messages together; 0 where nothing is generated.

        Args:
            units: All units of the source.
            size: Size of a text, such as its number of words.
        """
        ...

    def token_counts(self, units: Sequence[WorkUnit]) -> TokenCounts:
        """Estimate the tokens of a job.

        Args:
            units: All units of the source.
        """
        ...
