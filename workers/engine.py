"""What every engine promises: requests in, captured rollouts out, in the order of the requests.

Knows nothing of how it is done, nor of units or stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..jobs.block import ArrayName, Rollout
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
