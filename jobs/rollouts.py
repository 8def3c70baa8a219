"""What a worker makes of a unit: its rollouts and their pooled activations, as plain values and numpy arrays.

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
"""(hook point, pooling): which of a run's activation arrays."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One conversation, generated or given, up to the end of one response.

    The response span is ``[len(prompt_token_ids), len(prompt_token_ids) + num_content_tokens)`` of prompt and response
    ids put together: content only, without the end-of-turn token that may close ``response_token_ids``.

    Attributes:
        finish_reason: ``stop``: the model ended its turn; ``length``: cut at max_new_tokens; ``given``: not known, the
            text was there before.
        seed: 0 for a given text.
        conversation_index: Place of a given conversation in the input; None for a generated rollout.
        extra: Other keys of a given conversation in the input, as JSON; ``""`` for a generated rollout.
        has_vector: False when the response is empty: then its rows of response poolings hold no numbers.
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
        """Whether there was any content to pool."""
        return self.num_content_tokens > 0


@dataclass(frozen=True, slots=True)
class Canary:
    """How the captured vectors of some rollouts of a unit compare with a plain forward pass over each of them alone.

    Attributes:
        num_rollouts: Rollouts that were recomputed.
        relative_error_L: Worst ``|captured - plain| / |plain|`` per captured layer, over rollouts and arrays.
        cosine_L: Least cosine per captured layer.
    """

    num_rollouts: int
    relative_error_L: tuple[float, ...]
    cosine_L: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class UnitResult:
    """A finished unit, on its way from the worker to the store inside one process.

    Attributes:
        attempt: The attempt that made it.
        rollouts: B rollouts, in the unit's row order.
        arrays_BLD: float32 per (hook point, pooling); NaN in the rows that have no vector, nowhere else.
        seconds: Time the model took for it.
        canary: How the vectors compare with a plain forward pass; None when no rollout has any content.
        tokens_NKD: float32 per (hook point, ``tokens``): every content token, rollout after rollout in row order;
            all of them finite.
    """

    attempt: UnitAttempt
    rollouts: tuple[Rollout, ...]
    arrays_BLD: dict[ArrayName, npt.NDArray[np.float32]]
    seconds: float
    canary: Canary | None = None
    tokens_NKD: dict[ArrayName, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(
            "A UnitResult does not travel between processes: activations are written to the store where they are made. "
            "Send the attempt's manifest instead."
        )
