"""A finished unit inside the worker's process: its rollouts and activations, on their way to the store.

Axes: B rollouts of the unit, N content tokens of all of them, L captured layers, K those of which every token is kept,
D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..specs.spec_parts import CanarySpec
from .rollouts import ArrayName, Canary, Rollout
from .units import UnitAttempt


@dataclass(frozen=True, eq=False)
class UnitResult:
    """The result of a unit, passed from the model to the writer within one process.

    Attributes:
        attempt: The attempt that produced it.
        rollouts: B rollouts, in the unit's row order.
        arrays_BLD: float32 per (hook point, pooling); NaN exactly in the rows that have no vector.
        seconds: Time that the model took for the unit, in seconds.
        canary: Comparison of some rollouts with a plain forward pass; None when none was compared.
        tokens_NKD: float32 per (hook point, ``tokens``): every content token, rollout after rollout in row order; all
            finite.
        canary_rule: The rule by which rollouts were chosen for the canary; None when it is not known.
    """

    attempt: UnitAttempt
    rollouts: tuple[Rollout, ...]
    arrays_BLD: dict[ArrayName, npt.NDArray[np.float32]]
    seconds: float
    canary: Canary | None = None
    tokens_NKD: dict[ArrayName, npt.NDArray[np.float32]] = field(default_factory=dict)
    canary_rule: CanarySpec | None = None

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(
            "A UnitResult cannot be sent to another process: the worker writes activations to the store. Send the "
            "attempt's manifest instead."
        )
