"""Every token of the responses in some layers, in main memory: copied off the device pass by pass.

A copy is started after every pass and read when it is done, so that nothing waits for the device. Does not import vLLM.
Axes: K layers of this worker at which every token is kept, T tokens of one pass, N tokens kept of one slot, D d_model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .tracking import Stretch


@dataclass(frozen=True, eq=False)
class _Copy:
    """Tokens ``(K, E, D)`` on their way to main memory, stretch after stretch; ``done`` is None once they are there."""

    stretches: Sequence[Stretch]
    tokens_KED: torch.Tensor
    done: Any


class TokenStore:
    """The tokens of the slots of one worker.

    Args:
        num_layers: K.
        d_model: D.
        device: Where the model is.
    """

    def __init__(self, *, num_layers: int, d_model: int, device: Any) -> None:
        self._device = torch.device(device)
        self._num_layers = num_layers
        self._d_model = d_model
        self._pending: deque[_Copy] = deque()
        self._kept: dict[int, list[npt.NDArray[np.float32]]] = {}

    def reset(self, slots: Sequence[int]) -> None:
        """Set slots to no tokens."""
        self._read(wait=False)
        self._kept |= {slot: [] for slot in slots}

    def add(self, stretches: Sequence[Stretch], hidden: Sequence[torch.Tensor]) -> None:
        """Start to copy the tokens of one forward pass.

        Args:
            stretches: The stretches of the pass that belong to responses.
            hidden: For each of the K layers the hidden states ``(T, D)``.
        """
        self._read(wait=False)
        if not stretches or not hidden:
            return
        places = [place for one in stretches for place in range(one.start, one.stop)]
        places_E = torch.tensor(places, device=self._device)
        tokens_KED = torch.stack([resid_TD[places_E] for resid_TD in hidden])
        if self._device.type == "cpu":
            self._pending.append(_Copy(stretches, tokens_KED, None))
            return
        landing = torch.empty(tokens_KED.shape, dtype=tokens_KED.dtype, pin_memory=True)
        landing.copy_(tokens_KED, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._pending.append(_Copy(stretches, landing, done))

    def take(self, slots: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Return and forget the tokens of slots, each float32 ``(K, N, D)``; waits for copies that were started."""
        self._read(wait=True)
        empty = np.empty((self._num_layers, 0, self._d_model), dtype=np.float32)
        return [np.concatenate([empty, *self._kept.pop(slot, [])], axis=1) for slot in slots]

    def _read(self, *, wait: bool) -> None:
        while self._pending:
            copy = self._pending[0]
            if copy.done is not None:
                if not wait and not copy.done.query():
                    return
                copy.done.synchronize()
            self._pending.popleft()
            tokens_KED = copy.tokens_KED.float().numpy()
            begin = 0
            for one in copy.stretches:
                end = begin + one.stop - one.start
                if one.slot in self._kept:
                    # A copy: a view would keep the tokens of the whole pass for as long as the slot is in use.
                    self._kept[one.slot].append(tokens_KED[:, begin:end].copy())
                begin = end
