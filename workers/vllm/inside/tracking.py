"""Which tokens of a forward pass of vLLM belong to which slot, and to which of its spans.

vLLM computes the tokens of a request in pieces: a long prompt in several passes, a cached prefix not at all, and after
a preemption everything once more. So every token is identified by its position in the conversation, and a position
counts the first time that it is computed, and never again. What was added before a preemption stays valid: vLLM redoes
the same tokens. Does not import vLLM or torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ....jobs.poolings import Span
from ..capture_plan import SlotSpans


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens of one request in a forward pass.

    Attributes:
        request: Name of the request, as vLLM's worker has it.
        position: Position of its first token in its conversation.
        length: Number of its tokens.
    """

    request: str
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of a forward pass that belong to one span of one slot.

    Attributes:
        slot: The slot.
        start: Index of the first token in the pass.
        stop: End, exclusive; greater than ``start``.
        is_open: Whether the span is that of a response that is being generated.
    """

    slot: int
    start: int
    stop: int
    is_open: bool


@dataclass(eq=False)
class _Tracked:
    slots: tuple[SlotSpans, ...]
    computed: int = 0


class Tracker:
    """Follows the requests of one worker through its forward passes."""

    def __init__(self) -> None:
        self._requests: dict[str, _Tracked] = {}
        self._request_of_slot: dict[int, str] = {}

    def start(self, request: str, slots: Iterable[SlotSpans]) -> list[int]:
        """Begin to follow a request; one that is followed already, because it was preempted, goes on.

        Args:
            request: Its name.
            slots: Its slots, with their spans.

        Returns:
            Its slots, to be reset; none for a request that goes on.
        """
        if request in self._requests:
            return []
        tracked = self._requests[request] = _Tracked(tuple(slots))
        numbers = [one.slot for one in tracked.slots]
        self._request_of_slot |= dict.fromkeys(numbers, request)
        return numbers

    def forget(self, slots: Iterable[int]) -> None:
        """Stop following the requests of these slots; passes that vLLM has scheduled before are ignored."""
        for slot in slots:
            request = self._request_of_slot.pop(slot, None)
            if request is not None:
                self._requests.pop(request, None)

    def stretches(self, pieces: Sequence[Piece]) -> dict[Span, list[Stretch]]:
        """Find what a forward pass computes of every span.

        Args:
            pieces: The requests of the pass, in the order of their tokens in it.

        Returns:
            The stretches of each span, in the order of the pass.
        """
        found: dict[Span, list[Stretch]] = {}
        begin = 0
        for piece in pieces:
            tracked = self._requests.get(piece.request)
            end = piece.position + piece.length
            if tracked is not None and end > tracked.computed:
                first = max(piece.position, tracked.computed)
                offset = begin - piece.position
                for one in tracked.slots:
                    for span, (start, stop) in one.ranges.items():
                        low, high = max(first, start), end if stop is None else min(end, stop)
                        if low < high:
                            stretch = Stretch(one.slot, low + offset, high + offset, stop is None)
                            found.setdefault(span, []).append(stretch)
                tracked.computed = end
            begin += piece.length
        return found
