"""Every token of the responses in some layers, in main memory: copied off the device pass by pass.

The id of every token is kept beside it, by which the reader of a slot checks that it has the tokens that vLLM reports.
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
from .transfers import start_to_host, to_device


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """The tokens of one slot.

    Attributes:
        tokens_KND: float32 ``(K, N, D)``.
        token_ids: Their ids.
    """

    tokens_KND: npt.NDArray[np.float32]
    token_ids: list[int]


@dataclass(frozen=True, eq=False)
class _Copy:
    """Tokens ``(K, E, D)`` on their way to main memory, stretch after stretch; ``done`` is None once they are there."""

    stretches: Sequence[Stretch]
    tokens_KED: torch.Tensor
    ids_E: torch.Tensor
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
        self._kept: dict[int, list[KeptTokens]] = {}

    def reset(self, slots: Sequence[int]) -> None:
        """Set slots to no tokens."""
        self._read(wait=False)
        self._kept |= {slot: [] for slot in slots}

    def add(self, stretches: Sequence[Stretch], hidden: Sequence[torch.Tensor], token_ids_T: torch.Tensor) -> None:
        """Start to copy the tokens of one forward pass.

        Args:
            stretches: The stretches of the pass that belong to responses.
            hidden: For each of the K layers the hidden states ``(T, D)``.
            token_ids_T: The tokens that the pass read, any integer type.
        """
        self._read(wait=False)
        if not stretches or not hidden:
            return
        places = np.concatenate([np.arange(one.start, one.stop, dtype=np.int64) for one in stretches])
        places_E = to_device(places, self._device)
        tokens_KED = torch.stack([resid_TD[places_E] for resid_TD in hidden])
        ids_E = token_ids_T[places_E]
        if self._device.type == "cpu":
            self._pending.append(_Copy(stretches, tokens_KED, ids_E, None))
            return
        self._pending.append(_Copy(stretches, start_to_host(tokens_KED), start_to_host(ids_E), _recorded()))

    def take(self, slots: Sequence[int]) -> list[KeptTokens]:
        """Return and forget the tokens of slots; waits for copies that were started."""
        self._read(wait=True)
        empty = np.empty((self._num_layers, 0, self._d_model), dtype=np.float32)
        taken: list[KeptTokens] = []
        for slot in slots:
            kept = self._kept.pop(slot, [])
            tokens_KND = np.concatenate([empty, *(one.tokens_KND for one in kept)], axis=1)
            taken.append(KeptTokens(tokens_KND, [token for one in kept for token in one.token_ids]))
        return taken

    def _read(self, *, wait: bool) -> None:
        while self._pending:
            copy = self._pending[0]
            if copy.done is not None:
                if not wait and not copy.done.query():
                    return
                copy.done.synchronize()
            self._pending.popleft()
            tokens_KED = copy.tokens_KED.float().numpy()
            ids = copy.ids_E.tolist()
            begin = 0
            for one in copy.stretches:
                end = begin + one.stop - one.start
                if one.slot in self._kept:
                    # A copy: a view would keep the tokens of the whole pass for as long as the slot is in use.
                    self._kept[one.slot].append(KeptTokens(tokens_KED[:, begin:end].copy(), ids[begin:end]))
                begin = end


def _recorded() -> torch.cuda.Event:
    done = torch.cuda.Event()
    done.record()
    return done
