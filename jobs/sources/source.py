"""Where the texts of a job come from: what a plan asks of every source of requests. Pure.

A source makes the work units and, for each, the requests that a worker answers. A new kind of job is a new source;
plans, estimates, workers and stores ask these questions and never which source it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..conversation import Conversation
from ..unit_size import RowSizes
from ..units import UnitRequests, WorkUnit


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """How many tokens a job reads and writes, counted from its words.

    Attributes:
        prompt_tokens: Tokens read, about.
        response_tokens: Tokens written, at most; of texts that exist, tokens of the responses, about.
        row_tokens: Prompt and response of the rollout that batches are sized by.
    """

    prompt_tokens: int
    response_tokens: int
    row_tokens: int


class RequestSource(Protocol):
    """Something that makes units and their requests.

    A source is deterministic: what it was made from decides the units, their order, every address, seed and text.
    """

    @property
    def generates(self) -> bool:
        """Whether the responses are to be generated; False where they exist already and are only read."""
        ...

    @property
    def conversations(self) -> Sequence[Conversation]:
        """The texts that exist already, all of which the model's chat template must render; empty for none."""
        ...

    def units(self, sizes: RowSizes, max_context: int) -> Iterable[WorkUnit]:
        """Cut the job into units, in the order in which they are planned.

        Args:
            sizes: How much a unit may hold.
            max_context: Longest sequence that the model takes, in tokens.

        Raises:
            InputError: The source lacks something that the spec names, or one piece of it is too large for any unit.
        """
        ...

    def requests(self, unit: WorkUnit) -> UnitRequests:
        """Return the texts of one of its units."""
        ...

    def identity(self, unit: WorkUnit) -> bytes:
        """Return every text of a unit in a canonical form; the plan's digest is taken over these bytes."""
        ...

    def most_tokens(self, unit: WorkUnit, max_context: int) -> int:
        """Return the most content tokens that a unit's responses may come to, all together.

        Args:
            unit: One of its units.
            max_context: Longest sequence that the model takes, in tokens.
        """
        ...

    def token_counts(self, units: Sequence[WorkUnit]) -> TokenCounts:
        """Count the tokens of a job.

        Args:
            units: All of its units.
        """
        ...
