"""Look at a model's residual stream while a packed pass runs: some tokens as they are, some spans summed.

What is kept of a pass is small whatever the pass: every look gathers the wanted tokens and adds up the wanted spans at
once, on the device, in float32. Knows nothing of rollouts; it is told which tokens matter.
Axes: L captured layers, N tokens of the pass, E wanted tokens, P wanted spans, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..jobs.errors import UnitError
from ..jobs.spec import HookPoint
from .hook_points import Tap


@dataclass(frozen=True)
class Seen:
    """What one pass showed at one hook point.

    Attributes:
        tokens_LED: float32, the wanted tokens.
        sums_LPD: float32, the sum over each wanted span.
    """

    tokens_LED: torch.Tensor
    sums_LPD: torch.Tensor


class Capture:
    """Hooks on the places of the hook points; on the model only while a pass runs.

    Args:
        taps: For every hook point one place per captured layer.
        layers: The captured layers, to name them.
        top: The block of the highest of them.
    """

    def __init__(self, taps: Mapping[HookPoint, Sequence[Tap]], layers: Sequence[int], top: nn.Module) -> None:
        self._taps = taps
        self._layers = list(layers)
        self._top = top

    def watch(
        self,
        run: Callable[[], torch.Tensor],
        *,
        tokens: Sequence[int],
        spans: Sequence[tuple[int, int]],
        num_tokens: int,
        device: str,
        stop_at_top: bool = False,
    ) -> tuple[torch.Tensor | None, dict[HookPoint, Seen]]:
        """Run a pass and look.

        Args:
            run: Runs the model over one line of N tokens.
            tokens: E wanted places in the line.
            spans: P wanted spans of the line, end exclusive.
            num_tokens: N.
            device: Where the model is.
            stop_at_top: End the pass above the highest captured block: nobody needs logits.

        Returns:
            What ``run`` gave (None when it was stopped), and what was seen at each hook point.

        Raises:
            UnitError: A layer was not seen exactly once.
        """
        tokens_E = torch.tensor(list(tokens), dtype=torch.long, device=device)
        sums_of = _summing(spans, num_tokens, device) if spans else None
        kept: dict[tuple[HookPoint, int], list[tuple[torch.Tensor, torch.Tensor | None]]] = {}

        def look(point: HookPoint, position: int, resid: torch.Tensor) -> None:
            resid_ND = resid.reshape(num_tokens, -1)
            sums_PD = None if sums_of is None else sums_of(resid_ND)
            kept.setdefault((point, position), []).append((resid_ND[tokens_E], sums_PD))

        handles: list[Any] = [
            tap.attach(partial(look, point, position))
            for point, taps in self._taps.items()
            for position, tap in enumerate(taps)
        ]
        if stop_at_top:
            handles.append(self._top.register_forward_hook(_stop))
        try:
            output = run()
        except _Stopped:
            output = None
        finally:
            for handle in handles:
                handle.remove()
        return output, {point: self._seen(point, kept) for point in self._taps}

    def _seen(
        self, point: HookPoint, kept: Mapping[tuple[HookPoint, int], list[tuple[torch.Tensor, torch.Tensor | None]]]
    ) -> Seen:
        looks: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for position, layer in enumerate(self._layers):
            of_layer = kept.get((point, position), [])
            if len(of_layer) != 1:
                raise UnitError(
                    f"layer {layer}: {point} was seen {len(of_layer)} times in one forward pass.", code="hook_not_fired"
                )
            looks += of_layer
        tokens_LED = torch.stack([tokens_ED for tokens_ED, _ in looks]).float()
        sums = [sums_PD for _, sums_PD in looks if sums_PD is not None]
        return Seen(tokens_LED, torch.stack(sums) if sums else tokens_LED.new_empty(len(looks), 0, 0))


class _Stopped(Exception):  # noqa: N818 - no error: it ends a pass of which all that matters was seen
    pass


def _stop(_module: nn.Module, _args: Any, _output: Any) -> None:
    raise _Stopped


def _summing(spans: Sequence[tuple[int, int]], num_tokens: int, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give the function that adds up each span of a stream, ``(N, D)`` to float32 ``(P, D)``."""
    if device == "cpu":
        return lambda resid_ND: torch.stack([resid_ND[a:b].sum(dim=0, dtype=torch.float32) for a, b in spans])
    # On a GPU one product with rows of ones and zeros: a kernel for every span would cost more than its arithmetic.
    starts_P1, stops_P1 = torch.tensor(list(spans), dtype=torch.long).T[:, :, None]
    places_N = torch.arange(num_tokens)
    weights_PN = ((places_N >= starts_P1) & (places_N < stops_P1)).float().to(device)
    return lambda resid_ND: weights_PN @ resid_ND.float()


def require_finite(vectors_LD: torch.Tensor, layers: Sequence[int], what: str) -> None:
    """Make sure that every number is finite.

    Args:
        vectors_LD: Of the captured layers, or ``(L, E, D)``.
        layers: The captured layers.
        what: The words for the message.

    Raises:
        UnitError: One is not; names the lowest captured layer that has one, which is where it began.
    """
    finite_L = torch.isfinite(vectors_LD).flatten(1).all(dim=1).tolist()
    for layer, finite in zip(layers, finite_L, strict=True):
        if not finite:
            raise UnitError(f"layer {layer}: {what} is not finite.", code="not_finite")
