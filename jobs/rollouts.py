"""The result of a unit: its rollouts and their pooled activations, as plain values and numpy arrays.

Axes: B rollouts of the unit, N content tokens of all of them, L captured layers, K those of which every token is kept,
D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from .units import RolloutAddress, UnitAttempt

FinishReason = Literal["stop", "length", "given"]
ArrayName = tuple[str, str]
"""(hook point, pooling): names one of a run's activation arrays."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One conversation, generated or given, up to the end of one response.

    The response span is ``[len(prompt_token_ids), len(prompt_token_ids) + num_content_tokens)`` of the concatenated
    token ids: content only, without the end-of-turn token that may be the last of ``response_token_ids``.

    Attributes:
        address: Address of the rollout.
        system_prompt: The system prompt; ``""`` for none.
        question: The last user message before the response.
        response: Text of the response.
        prompt_token_ids: Token ids of everything before the response.
        response_token_ids: Token ids of the response, with the end-of-turn token if the model produced one.
        num_content_tokens: Number of content tokens of the response.
        finish_reason: ``stop``: the model ended its turn; ``length``: truncated at max_new_tokens; ``given``: an
            existing text, for which it is not known.
        seed: Seed of its samples; 0 for a given text.
        conversation_index: Index of a given conversation in the input; None for a generated rollout.
        extra: Additional keys of a given conversation in the input, as JSON; ``""`` for a generated rollout.
    """

    address: RolloutAddress
    system_prompt: str
    question: str
    response: str
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    num_content_tokens: int
    finish_reason: FinishReason
    seed: int
    conversation_index: int | None = None
    extra: str = ""

    @property
    def has_vector(self) -> bool:
        """Whether the response has content to pool; if not, its rows of the response poolings are NaN."""
        return self.num_content_tokens > 0


@dataclass(frozen=True, slots=True)
class Canary:
    """How the captured vectors of some rollouts of a unit compare with a plain forward pass over each of them alone.

    Attributes:
        num_rollouts: Number of rollouts that were recomputed.
        relative_error_L: Largest ``|captured - plain| / |plain|`` per captured layer, over rollouts and arrays.
        cosine_L: Smallest cosine of captured and plain vector per captured layer.
    """

    num_rollouts: int
    relative_error_L: tuple[float, ...]
    cosine_L: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class UnitResult:
    """The result of a unit, passed from the model to the writer within one process.

    Attributes:
        attempt: The attempt that produced it.
        rollouts: B rollouts, in the unit's row order.
        arrays_BLD: float32 per (hook point, pooling); NaN exactly in the rows that have no vector.
        seconds: Time that the model took for the unit, in seconds.
        canary: Comparison of one rollout with a plain forward pass; None when no rollout has content.
        tokens_NKD: float32 per (hook point, ``tokens``): every content token, rollout after rollout in row order; all
            finite.
    """

    attempt: UnitAttempt
    rollouts: tuple[Rollout, ...]
    arrays_BLD: dict[ArrayName, npt.NDArray[np.float32]]
    seconds: float
    canary: Canary | None = None
    tokens_NKD: dict[ArrayName, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(
            "A UnitResult cannot be sent to another process: the worker writes activations to the store. Send the "
            "attempt's manifest instead."
        )
