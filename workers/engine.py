"""What every engine is told and promises: requests in, captured rollouts out, in the order of the requests.

Knows nothing of how it is done, nor of units or stores; imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..jobs.block import ArrayName, Rollout
from ..jobs.spec import CaptureSpec, SamplingSpec
from ..jobs.units import RolloutRequest


@dataclass(frozen=True, eq=False)
class CapturedRollout:
    """A rollout with its pooled activations.

    Attributes:
        rollout: What was said.
        vectors_LD: float32 ``(L, D)`` per (hook point, pooling); all NaN where the rollout has no vector.
    """

    rollout: Rollout
    vectors_LD: dict[ArrayName, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """All that an engine is told.

    Attributes:
        directory: The model's files.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of this process.
        batch_tokens: Tokens, prompts and responses, that one batch may hold.
        layers: Captured blocks.
        sampling: How tokens are chosen.
        capture: Hook points and poolings.
    """

    directory: Path
    dtype: str
    device: str
    threads: int
    batch_tokens: int
    layers: tuple[int, ...]
    sampling: SamplingSpec
    capture: CaptureSpec


class Engine(Protocol):
    """Something that turns requests into captured rollouts."""

    def generate(self, requests: Sequence[RolloutRequest]) -> list[CapturedRollout]:
        """Generate and capture.

        Args:
            requests: Any number, of any personas; they may share batches.

        Returns:
            One for each request, in the same order.

        Raises:
            UnitError: A number was not finite or a layer was not seen; nothing of the call can be used.
        """
        ...
