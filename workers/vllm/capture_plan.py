"""What vLLM's workers capture, as values that travel to them: with their configuration, and with every request.

vLLM hands a worker its configuration (``additional_config``) and the sampling parameters of a request (``extra_args``)
as plain JSON values, so both plans are made of these. Does not import vLLM or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...jobs.poolings import POOLINGS, Combine, Span, TokenSpans

KEY = "persona_atlas"
"""Where both plans lie in vLLM's dictionaries."""

Sum = tuple[Combine, Span]
"""One value that a worker keeps of a slot: how tokens are combined, and those of which span. Several poolings may be
taken from one value (``prompt_last`` and ``assistant_start``)."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What every worker captures of every request.

    Attributes:
        layers: The captured layers, 0-based, ascending.
        token_layers: Those of them at which every token is kept.
        sums: The values that are kept of a slot, each once.
        keeps_tokens: Whether every token of a response is kept, at ``token_layers``.
        slots: Number of slots.
        stop_ids: Token ids that end a response that is being generated. vLLM may feed one to the model before it knows
            that the response has ended.
    """

    layers: tuple[int, ...]
    token_layers: tuple[int, ...]
    sums: tuple[Sum, ...]
    keeps_tokens: bool
    slots: int
    stop_ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        poolings: Sequence[str],
        *,
        layers: Sequence[int],
        token_layers: Sequence[int],
        slots: int,
        stop_ids: Sequence[int],
    ) -> WorkerPlan:
        """Make the plan of some poolings.

        Args:
            poolings: Names of poolings.
            layers: The captured layers.
            token_layers: Those of them at which every token is kept.
            slots: Number of slots.
            stop_ids: Token ids that end a response.
        """
        entries = [POOLINGS[name] for name in poolings]
        sums: dict[Sum, None] = dict.fromkeys(
            (entry.combine, entry.span) for entry in entries if not entry.keeps_tokens
        )
        keeps = any(entry.keeps_tokens for entry in entries)
        return cls(tuple(layers), tuple(token_layers), tuple(sums), keeps, slots, tuple(sorted(stop_ids)))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as the worker's configuration carries it."""
        return {
            "layers": list(self.layers),
            "token_layers": list(self.token_layers),
            "sums": [list(one) for one in self.sums],
            "keeps_tokens": self.keeps_tokens,
            "slots": self.slots,
            "stop_ids": list(self.stop_ids),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerPlan:
        """Read what ``to_json`` returned."""
        return cls(
            tuple(data["layers"]),
            tuple(data["token_layers"]),
            tuple((combine, span) for combine, span in data["sums"]),
            data["keeps_tokens"],
            data["slots"],
            tuple(data["stop_ids"]),
        )

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of which tokens are needed, each once."""
        spans: list[Span] = [span for _, span in self.sums]
        return tuple(dict.fromkeys([*spans, *(["response"] if self.keeps_tokens else [])]))

    def first_needed(self, spans: Sequence[TokenSpans]) -> int | None:
        """Return the first token of a request that must be computed and not be read from a prefix cache.

        Args:
            spans: The spans of each of its responses; of a response that is being generated, only the start counts.

        Returns:
            Its position; None where no token is needed.
        """
        needed: list[int] = []
        for combine, span in [*self.sums, *([("every", "response")] if self.keeps_tokens else [])]:
            for of_response in spans:
                start, stop = of_response.of(span)
                if start < stop:
                    needed.append(stop - 1 if combine == "last" else start)
        return min(needed, default=None)


@dataclass(frozen=True, slots=True)
class SlotSpans:
    """The tokens of a request that one slot is about.

    Attributes:
        slot: The slot.
        ranges: Token range of each span that is needed; the stop of a response that is being generated is None.
    """

    slot: int
    ranges: Mapping[Span, tuple[int, int | None]]

    @classmethod
    def of(cls, slot: int, needed: Sequence[Span], spans: TokenSpans, *, is_open: bool) -> SlotSpans:
        """Make the spans of one response.

        Args:
            slot: Its slot.
            needed: The spans that are needed.
            spans: Its token ranges.
            is_open: Whether the response is being generated, so that nobody knows yet where it stops.
        """
        ranges: dict[Span, tuple[int, int | None]] = {}
        for span in needed:
            start, stop = spans.of(span)
            ranges[span] = (start, None if is_open and span == "response" else stop)
        return cls(slot, ranges)

    def to_json(self) -> list[Any]:
        """Return the spans as a request's parameters carry them."""
        return [self.slot, [[span, start, stop] for span, (start, stop) in self.ranges.items()]]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> SlotSpans:
        """Read what ``to_json`` returned."""
        slot, ranges = data
        return cls(slot, {span: (start, stop) for span, start, stop in ranges})
