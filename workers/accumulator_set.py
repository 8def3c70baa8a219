"""The accumulators of all arrays that a run captures, and what one pass adds to them.

Generation and reading share it: in generation a slot is a rollout of the
running batch, in reading a response of the pass. Axes: see ``pooling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..jobs.poolings import POOLINGS, Pooling, Span, TokenSpans
from ..jobs.specs.spec_parts import CaptureSpec, HookPoint
from ..jobs.work.rollouts import ArrayName
from .observation import Observed, Wanted
from .pooling import ACCUMULATORS, Accumulator, Float32, Shape


class AccumulatorSet:
    """One accumulator for every array (hook point and pooling) that a run captures.

    Args:
        capture: Hook points and poolings to capture.
        shape: Shape of one value.
    """

    def __init__(self, capture: CaptureSpec, shape: Shape) -> None:
        self.poolings: tuple[Pooling, ...] = tuple(POOLINGS[name] for name in capture.poolings)
        self.hook_points: tuple[HookPoint, ...] = tuple(capture.hook_points)
        self._accumulators: dict[ArrayName, Accumulator] = {
            (point, pooling.name): ACCUMULATORS[pooling.combine](shape)
            for point in self.hook_points
            for pooling in self.poolings
        }

    @property
    def spans(self) -> list[Span]:
        """The spans that the poolings are taken over, each once."""
        return list(dict.fromkeys(pooling.span for pooling in self.poolings))

    def arrays(self, span: Span) -> list[tuple[HookPoint, ArrayName, Accumulator]]:
        """Return hook point, name and accumulator of every array whose pooling is taken over a span."""
        return [
            (point, (point, pooling.name), self._accumulators[point, pooling.name])
            for point in self.hook_points
            for pooling in self.poolings
            if pooling.span == span
        ]

    def start(self, slots: slice) -> None:
        """Reset slots for new rollouts, in every array."""
        for accumulator in self._accumulators.values():
            accumulator.start(slots)

    def add_tokens(self, span: Span, slots: slice, observed: Mapping[HookPoint, Observed]) -> None:
        """Add one token to each of these slots, in the arrays that pool a span.

        Args:
            span: The span that the tokens belong to.
            slots: Slots 0 to n; their tokens are the first n observed ones, in the same order.
            observed: Observed values of the pass, by hook point.
        """
        for point, _, accumulator in self.arrays(span):
            accumulator.add(slots, accumulator.parts_of_tokens(observed[point].tokens_LED[:, slots]))

    def move(self, source: int, target: int) -> None:
        """Move one slot's values to another slot, in every array."""
        for accumulator in self._accumulators.values():
            accumulator.move(source, target)

    def finish(self, slot: int, spans: TokenSpans) -> tuple[dict[ArrayName, Float32], dict[ArrayName, Float32]]:
        """Return a slot's pooled values.

        Args:
            slot: The slot.
            spans: Token spans of its rollout; a mean is divided by the length of its span.

        Returns:
            The vectors, ``(L, D)`` each, and the arrays of every token, ``(K, T, D)`` each.
        """
        vectors: dict[ArrayName, Float32] = {}
        tokens: dict[ArrayName, Float32] = {}
        for point in self.hook_points:
            for pooling in self.poolings:
                start, stop = spans.of(pooling.span)
                value = self._accumulators[point, pooling.name].finish(slot, stop - start)
                (tokens if pooling.keeps_tokens else vectors)[point, pooling.name] = value
        return vectors, tokens


class PassStretches:
    """The stretches of one pass: collected while the packed sequence is built, added to the slots after the pass.

    Args:
        accumulators: The accumulators that the stretches are added to.
        wanted: What the pass will observe; each stretch adds what it needs.
    """

    def __init__(self, accumulators: AccumulatorSet, wanted: Wanted) -> None:
        self._accumulators = accumulators
        self.wanted = wanted
        # Keyed by array and by how many earlier stretches the slot has in this pass: ``add`` takes each slot at most
        # once per call, and a slot's stretches must be added in order.
        self._rounds: dict[tuple[ArrayName, int], tuple[HookPoint, Accumulator, list[int], list[Any]]] = {}
        self._times: dict[tuple[ArrayName, int], int] = {}

    def claim(self, slot: int, span: Span, start: int, stop: int) -> None:
        """Assign a stretch of the packed sequence to a slot, in every array that is pooled over a span.

        Args:
            slot: The slot.
            span: The span that the stretch is part of.
            start: Index of the first token in the packed sequence.
            stop: End, exclusive; an empty stretch adds nothing.
        """
        if start >= stop:
            return
        for point, array, accumulator in self._accumulators.arrays(span):
            nth = self._times.get((array, slot), 0)
            self._times[array, slot] = nth + 1
            _, _, slots, entries = self._rounds.setdefault((array, nth), (point, accumulator, [], []))
            slots.append(slot)
            entries.append(accumulator.want(self.wanted, start, stop))

    def add(self, observed: Mapping[HookPoint, Observed]) -> None:
        """Add the observed values of the pass to the slots; earlier stretches of a slot first."""
        for point, accumulator, slots, entries in self._rounds.values():
            accumulator.add(slots, accumulator.parts(observed[point], entries))
