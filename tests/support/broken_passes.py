"""Errors of a forward pass that only a comparison with a plain pass can find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Attend = Callable[..., torch.Tensor]


def seeing_the_first(attend: Attend) -> Attend:
    """Break attention: every conversation of a pass but the first is shown something of the first one."""

    def broken(self: Any, *arguments: Any) -> torch.Tensor:
        output_NHD = attend(self, *arguments)
        decoded = self._num_decoded
        own = 1 if decoded else self._segments[0].length
        return torch.cat([output_NHD[:own], output_NHD[own:] + 0.5 * output_NHD[:1]])

    return broken
