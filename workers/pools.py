"""The accumulators of everything that a run captures, and what one pass adds to them.

Generation and reading both pool through these: a slot is a rollout in the batch for the one, a response of a pass for
the other. Axes: see ``pooling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..jobs.poolings import POOLINGS, Pooling, Span, TokenSpans
from ..jobs.rollouts import ArrayName
from ..jobs.spec import CaptureSpec, HookPoint
from .observation import Observed, Wanted
from .pooling import ACCUMULATORS, Accumulator, Float32, Shape


class Pools:
    """An accumulator for every array that a run captures.

    Args:
        capture: Hook points and poolings.
        shape: Size of the arrays.
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
        """The spans that some pooling is over, each once."""
        return list(dict.fromkeys(pooling.span for pooling in self.poolings))

    def arrays(self, span: Span) -> list[tuple[HookPoint, ArrayName, Accumulator]]:
        """Return the arrays that pool a span: hook point, name and accumulator."""
        return [
            (point, (point, pooling.name), self._accumulators[point, pooling.name])
            for point in self.hook_points
            for pooling in self.poolings
            if pooling.span == span
        ]

    def start(self, slots: slice) -> None:
        """Begin new values in these slots, of every array."""
        for accumulator in self._accumulators.values():
            accumulator.start(slots)

    def add_tokens(self, span: Span, slots: slice, observed: Mapping[HookPoint, Observed]) -> None:
        """Add one token to each of these slots, in the arrays that pool a span.

        Args:
            span: Which.
            slots: From 0 on; their tokens are the first that were observed, in the same order.
            observed: Of the pass.
        """
        for point, _, accumulator in self.arrays(span):
            accumulator.add(slots, accumulator.parts_of_tokens(observed[point].tokens_LED[:, slots]))

    def move(self, source: int, target: int) -> None:
        """Put one slot's values in another's place, in every array."""
        for accumulator in self._accumulators.values():
            accumulator.move(source, target)

    def finish(self, slot: int, spans: TokenSpans) -> tuple[dict[ArrayName, Float32], dict[ArrayName, Float32]]:
        """Return a slot's values.

        Args:
            slot: Which.
            spans: Of its rollout, from which the numbers of tokens follow.

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
    """The stretches of one pass: gathered while the pass is laid out, added to the pools when it has run.

    Args:
        pools: Whose slots they belong to.
        wanted: What is to be observed of the pass, to which the stretches add what they need.
    """

    def __init__(self, pools: Pools, wanted: Wanted) -> None:
        self._pools = pools
        self.wanted = wanted
        # By array and by how many stretches its slots had before, so that no call adds to a slot twice.
        self._rounds: dict[tuple[ArrayName, int], tuple[HookPoint, Accumulator, list[int], list[Any]]] = {}
        self._times: dict[tuple[ArrayName, int], int] = {}

    def claim(self, slot: int, span: Span, start: int, stop: int) -> None:
        """Have a stretch of the line added to a slot, in the arrays that pool a span.

        Args:
            slot: Which.
            span: Of which the stretch is a part.
            start: First place in the line.
            stop: One after the last; an empty stretch adds nothing.
        """
        if start >= stop:
            return
        for point, array, accumulator in self._pools.arrays(span):
            nth = self._times.get((array, slot), 0)
            self._times[array, slot] = nth + 1
            _, _, slots, entries = self._rounds.setdefault((array, nth), (point, accumulator, [], []))
            slots.append(slot)
            entries.append(accumulator.want(self.wanted, start, stop))

    def add(self, observed: Mapping[HookPoint, Observed]) -> None:
        """Add what the pass showed; earlier stretches of a slot first."""
        for point, accumulator, slots, entries in self._rounds.values():
            accumulator.add(slots, accumulator.parts(observed[point], entries))
