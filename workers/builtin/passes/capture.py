"""Capture a model's activations while a packed pass runs: single tokens, and sums over spans.

Each hook gathers the requested tokens and sums the requested spans immediately, on the device, in float32, so that no
layer's full output is kept after the layer. Where every token of some layers is requested, the tokens are copied to the
CPU immediately, too. Knows nothing of rollouts and poolings; ``Wanted`` says which tokens to observe.
Axes: L captured layers, K those of which every token is kept, N tokens of the pass, E tokens observed of every layer,
W tokens observed of K layers, P spans summed, D d_model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ....jobs.errors import UnitError
from ....jobs.poolings import TokenRange
from ....jobs.specs.spec_parts import HookPoint
from ...models.hook_points import Tap
from ...observation import Observed, Wanted
from ...span_sums import sum_rows
from .to_device import to_device

NOT_FINITE_HINT = (
    "Numbers of some models, Gemma's among them, are beyond the range of float16: set model.dtype to bfloat16 or "
    "float32. If it is one of these already, the weights are damaged."
)
"""What to do about a number that is not finite; it would be the same in every attempt."""


@dataclass(frozen=True)
class _LayerObservation:
    """What one hook kept of one layer; ``every_WD`` only at the K layers, else None."""

    tokens_ED: torch.Tensor
    sums_PD: torch.Tensor | None
    every_WD: torch.Tensor | None


class Capture:
    """Forward hooks at the hook points, attached only while a pass runs.

    Args:
        taps: For every hook point, one tap per captured layer.
        layers: The captured layers, for error messages.
        top: The module of the highest captured decoder layer.
        token_positions: Indices among ``layers`` of the K layers at which every token may be requested.
        before_edits: Whether the values at a layer are those before the edits of the same layer.

    Attributes:
        taps: For every hook point, one tap per captured layer.
        layers: The captured layers.
        token_positions: Indices among ``layers`` of the K layers at which every token may be requested.
        before_edits: Whether the values at a layer are those before the edits of the same layer.
    """

    def __init__(
        self,
        taps: Mapping[HookPoint, Sequence[Tap]],
        layers: Sequence[int],
        top: nn.Module,
        token_positions: Sequence[int] = (),
        *,
        before_edits: bool = False,
    ) -> None:
        self.taps = taps
        self.before_edits = before_edits
        self.layers = list(layers)
        self._top = top
        self.token_positions = frozenset(token_positions)

    def observe(
        self,
        run: Callable[[], torch.Tensor],
        wanted: Wanted,
        *,
        num_tokens: int,
        device: str,
        stop_at_top: bool = False,
        top: nn.Module | None = None,
    ) -> tuple[torch.Tensor | None, dict[HookPoint, Observed]]:
        """Run a pass and observe it.

        Args:
            run: Runs the model over one packed sequence of N tokens.
            wanted: Which tokens and spans to observe.
            num_tokens: N.
            device: ``cpu`` or ``cuda``: where the model is.
            stop_at_top: Whether to end the pass after the highest captured layer, for a pass that needs no logits.
            top: The decoder layer after which such a pass ends; None: the highest captured one.

        Returns:
            The result of ``run`` (None when the pass was stopped), and the observed values at each hook point.

        Raises:
            UnitError: A hook did not fire exactly once.
        """
        observing = self.begin(wanted, num_tokens=num_tokens, device=device)
        with observing.attached():
            # Attached last: the hooks that edit and observe the top layer run before this one ends the pass.
            ending = (top or self._top).register_forward_hook(_stop) if stop_at_top else None
            try:
                output = run()
            except _Stopped:
                output = None
            finally:
                if ending is not None:
                    ending.remove()
        return output, observing.observed()

    def begin(self, wanted: Wanted, *, num_tokens: int, device: str) -> Observing:
        """Begin to observe a pass that somebody else runs, all at once or layer by layer.

        Args:
            wanted: Which tokens and spans to observe.
            num_tokens: N, the tokens of the pass.
            device: ``cpu`` or ``cuda``: where the model is.
        """
        return Observing(self, wanted, num_tokens, device)

    @property
    def hook_points(self) -> list[HookPoint]:
        """The hook points that are observed."""
        return list(self.taps)

    def observe_all(
        self, run: Callable[[], torch.Tensor], tokens_LND: Mapping[HookPoint, torch.Tensor]
    ) -> torch.Tensor:
        """Run a pass and copy the activations of all its tokens, without waiting for the device.

        Args:
            run: Runs the model over one packed sequence of N tokens.
            tokens_LND: For every hook point, the tensor that they are copied to.

        Returns:
            The result of ``run``.

        Raises:
            UnitError: A hook did not fire exactly once.
        """
        times: Counter[tuple[HookPoint, int]] = Counter()

        def observe(point: HookPoint, position: int, resid: torch.Tensor) -> None:
            times[point, position] += 1
            kept_ND = tokens_LND[point][position]
            kept_ND.copy_(resid.reshape(kept_ND.shape))

        with _attached(self.taps, observe, first=self.before_edits):
            output = run()
        for point in self.taps:
            for position, layer in enumerate(self.layers):
                _require_once(point, layer, times[point, position])
        return output


class Observing:
    """Observes one pass; ``Capture.begin`` makes it.

    Args:
        capture: Where to observe.
        wanted: Which tokens and spans to observe.
        num_tokens: N.
        device: Where the model is.
    """

    def __init__(self, capture: Capture, wanted: Wanted, num_tokens: int, device: str) -> None:
        self._taps = capture.taps
        self._layers = capture.layers
        self._token_positions = capture.token_positions
        self._before_edits = capture.before_edits
        self._num_tokens = num_tokens
        self._tokens_E = to_device(wanted.tokens, device)
        self._sums_of = _summing(wanted.spans, num_tokens, device) if wanted.spans else None
        self._every_W = to_device(wanted.every, device) if wanted.every else None
        self._kept: dict[tuple[HookPoint, int], list[_LayerObservation]] = {}

    def attached(self, position: int | None = None) -> AbstractContextManager[None]:
        """Observe what the model runs within the context.

        Args:
            position: Index among the captured layers of the only one that runs; None: all of them.
        """
        return _attached(self._taps, self._observe, position, first=self._before_edits)

    def move_to_host(self, position: int) -> None:
        """Move what was observed of a layer to main memory, so that the device need not hold it until the pass ends.

        Args:
            position: Index of the layer among the captured ones.
        """
        for point in self._taps:
            kept = self._kept.get((point, position), [])
            kept[:] = [
                _LayerObservation(one.tokens_ED.cpu(), None if one.sums_PD is None else one.sums_PD.cpu(), one.every_WD)
                for one in kept
            ]

    def observed(self) -> dict[HookPoint, Observed]:
        """Return the observed values at each hook point, once the pass has run.

        Raises:
            UnitError: A hook did not fire exactly once.
        """
        return {point: self._at(point) for point in self._taps}

    def _observe(self, point: HookPoint, position: int, resid: torch.Tensor) -> None:
        resid_ND = resid.reshape(self._num_tokens, -1)
        sums_PD = None if self._sums_of is None else self._sums_of(resid_ND)
        is_kept = self._every_W is not None and position in self._token_positions
        every_WD = resid_ND[self._every_W].float().cpu() if is_kept else None
        # Indexing by a tensor copies, so this keeps no reference to the layer's full output.
        found = _LayerObservation(resid_ND[self._tokens_E], sums_PD, every_WD)
        self._kept.setdefault((point, position), []).append(found)

    def _at(self, point: HookPoint) -> Observed:
        observations: list[_LayerObservation] = []
        for position, layer in enumerate(self._layers):
            of_layer = self._kept.get((point, position), [])
            _require_once(point, layer, len(of_layer))
            observations += of_layer
        tokens_LED = torch.stack([one.tokens_ED for one in observations]).float()
        sums = [one.sums_PD for one in observations if one.sums_PD is not None]
        every = [one.every_WD for one in observations if one.every_WD is not None]
        sums_LPD = torch.stack(sums) if sums else tokens_LED.new_empty(len(observations), 0, 0)
        every_KWD = torch.stack(every) if every else torch.empty(len(self._token_positions), 0, tokens_LED.shape[2])
        return Observed(tokens_LED, sums_LPD, every_KWD)


@contextmanager
def _attached(
    taps: Mapping[HookPoint, Sequence[Tap]],
    observe: Callable[[HookPoint, int, torch.Tensor], None],
    position: int | None = None,
    *,
    first: bool,
) -> Iterator[None]:
    """Attach hooks at all captured layers, or at one."""
    handles = [
        tap.attach(partial(observe, point, place), first=first)
        for point, places in taps.items()
        for place, tap in enumerate(places)
        if position is None or place == position
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_once(point: HookPoint, layer: int, times: int) -> None:
    # A family may run a layer twice or skip it; the values would then not be those of one forward pass.
    if times != 1:
        raise UnitError(f"layer {layer}: {point} was seen {times} times in one forward pass.", code="hook_not_fired")


class _Stopped(Exception):  # noqa: N818 - not an error: ends a pass whose captured layers have all run
    pass


def _stop(_module: nn.Module, _args: Any, _output: Any) -> None:
    raise _Stopped


def _summing(spans: Sequence[TokenRange], num_tokens: int, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that adds up each span of a stream, ``(N, D)`` to float32 ``(P, D)``."""
    if device == "cpu":
        return lambda resid_ND: torch.stack([resid_ND[a:b].sum(dim=0, dtype=torch.float32) for a, b in spans])
    # On a GPU, one matrix product with rows of ones and zeros: launching a kernel per span would cost more.
    bounds_2P1 = (
        torch.tensor(list(spans), dtype=torch.long, pin_memory=True).T[:, :, None].to(device, non_blocking=True)
    )
    places_N = torch.arange(num_tokens, device=device)
    inside_PN = (places_N >= bounds_2P1[0]) & (places_N < bounds_2P1[1])
    return partial(sum_rows, inside_PN)


def require_finite(vectors_LD: torch.Tensor, layers: Sequence[int], what: str) -> None:
    """Check that every value is finite.

    Args:
        vectors_LD: Values by captured layer, ``(L, D)`` or ``(L, E, D)``.
        layers: The captured layers.
        what: Subject of the error message, such as ``resid_post of a token``.

    Raises:
        UnitError: A value is not finite; names the lowest captured layer that has one, closest to its origin.
    """
    finite_L = torch.isfinite(vectors_LD).flatten(1).all(dim=1).tolist()
    for layer, finite in zip(layers, finite_L, strict=True):
        if not finite:
            raise UnitError(f"layer {layer}: {what} is not finite.", code="not_finite", hint=NOT_FINITE_HINT)
