"""Look at a model's residual stream while a packed pass runs: some tokens as they are, some spans summed.

What is kept of a pass is small whatever the pass: every look gathers the wanted tokens and adds up the wanted spans at
once, on the device, in float32. Where every token of some layers is wanted they leave the device at once too. Knows
nothing of rollouts; it is told which tokens matter.
Axes: L captured layers, K those of which tokens are wanted as they are, N tokens of the pass, E tokens wanted of every
layer, W tokens wanted of K layers, P wanted spans, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ...jobs.errors import UnitError
from ...jobs.spec import HookPoint
from ..models.hook_points import Tap


@dataclass(frozen=True)
class Seen:
    """What one pass showed at one hook point.

    Attributes:
        tokens_LED: float32, the wanted tokens.
        sums_LPD: float32, the sum over each wanted span.
        whole_KWD: float32, in the machine's memory: the tokens wanted of K layers.
    """

    tokens_LED: torch.Tensor
    sums_LPD: torch.Tensor
    whole_KWD: torch.Tensor


@dataclass(frozen=True)
class _Observation:
    tokens_ED: torch.Tensor
    sums_PD: torch.Tensor | None
    whole_WD: torch.Tensor | None


class Capture:
    """Hooks on the places of the hook points; on the model only while a pass runs.

    Args:
        taps: For every hook point one place per captured layer.
        layers: The captured layers, to name them.
        top: The block of the highest of them.
        whole: Places among ``layers`` of the K of which ``watch`` may be asked for more tokens.
    """

    def __init__(
        self,
        taps: Mapping[HookPoint, Sequence[Tap]],
        layers: Sequence[int],
        top: nn.Module,
        whole: Sequence[int] = (),
    ) -> None:
        self._taps = taps
        self._layers = list(layers)
        self._top = top
        self._whole = frozenset(whole)

    def watch(
        self,
        run: Callable[[], torch.Tensor],
        *,
        tokens: Sequence[int],
        spans: Sequence[tuple[int, int]],
        num_tokens: int,
        device: str,
        whole: Sequence[int] = (),
        stop_at_top: bool = False,
    ) -> tuple[torch.Tensor | None, dict[HookPoint, Seen]]:
        """Run a pass and look.

        Args:
            run: Runs the model over one line of N tokens.
            tokens: E wanted places in the line.
            spans: P wanted spans of the line, end exclusive.
            num_tokens: N.
            device: Where the model is.
            whole: W places in the line, wanted of K layers alone.
            stop_at_top: End the pass above the highest captured block: nobody needs logits.

        Returns:
            What ``run`` gave (None when it was stopped), and what was seen at each hook point.

        Raises:
            UnitError: A layer was not seen exactly once.
        """
        tokens_E = torch.tensor(list(tokens), dtype=torch.long, device=device)
        sums_of = _summing(spans, num_tokens, device) if spans else None
        whole_W = torch.tensor(list(whole), dtype=torch.long, device=device) if whole else None
        kept: dict[tuple[HookPoint, int], list[_Observation]] = {}

        def look(point: HookPoint, position: int, resid: torch.Tensor) -> None:
            resid_ND = resid.reshape(num_tokens, -1)
            sums_PD = None if sums_of is None else sums_of(resid_ND)
            is_wanted = whole_W is not None and position in self._whole
            whole_WD = resid_ND[whole_W].float().cpu() if is_wanted else None
            kept.setdefault((point, position), []).append(_Observation(resid_ND[tokens_E], sums_PD, whole_WD))

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

    def _seen(self, point: HookPoint, kept: Mapping[tuple[HookPoint, int], list[_Observation]]) -> Seen:
        looks: list[_Observation] = []
        for position, layer in enumerate(self._layers):
            of_layer = kept.get((point, position), [])
            if len(of_layer) != 1:
                raise UnitError(
                    f"layer {layer}: {point} was seen {len(of_layer)} times in one forward pass.", code="hook_not_fired"
                )
            looks += of_layer
        tokens_LED = torch.stack([look.tokens_ED for look in looks]).float()
        sums = [look.sums_PD for look in looks if look.sums_PD is not None]
        whole = [look.whole_WD for look in looks if look.whole_WD is not None]
        sums_LPD = torch.stack(sums) if sums else tokens_LED.new_empty(len(looks), 0, 0)
        whole_KWD = torch.stack(whole) if whole else torch.empty(len(self._whole), 0, tokens_LED.shape[2])
        return Seen(tokens_LED, sums_LPD, whole_KWD)


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
