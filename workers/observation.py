"""Which activations of a forward pass to observe, and the observed values.

A pass runs over one packed sequence with the tokens of many conversations. A *place* is an index into that sequence,
and spans here are ranges of places; a *position* counts from the start of a conversation. Does not depend on models or
poolings.
Axes: L captured layers, K those of which every token is kept, E tokens observed of all L layers, P spans summed, W
tokens observed of the K layers alone, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..jobs.poolings import TokenRange


@dataclass(eq=False)
class Wanted:
    """Collects what to observe in a pass; a token or span that is requested twice is observed once.

    Attributes:
        tokens: E places, observed at all L layers.
        spans: P ranges of places, end exclusive; each is summed on the device, at all L layers.
        every: W places, observed at the K layers only.
    """

    tokens: list[int] = field(default_factory=list)
    spans: list[TokenRange] = field(default_factory=list)
    every: list[int] = field(default_factory=list)
    _entry_of_token: dict[int, int] = field(default_factory=dict)
    _entry_of_span: dict[TokenRange, int] = field(default_factory=dict)
    _entries_of_every: dict[TokenRange, TokenRange] = field(default_factory=dict)

    @classmethod
    def first_tokens(cls, count: int) -> Wanted:
        """Request the first tokens of the sequence; the entry of each is its place.

        Args:
            count: Number of tokens; in generation one per decoding slot.
        """
        return cls(tokens=list(range(count)), _entry_of_token={place: place for place in range(count)})

    def token(self, place: int) -> int:
        """Request one token's activations.

        Args:
            place: Index in the packed sequence.

        Returns:
            Index of the token along the E axis.
        """
        if place not in self._entry_of_token:
            self._entry_of_token[place] = len(self.tokens)
            self.tokens.append(place)
        return self._entry_of_token[place]

    def span(self, start: int, stop: int) -> int:
        """Request the sum over a range of tokens.

        Args:
            start: First place in the packed sequence.
            stop: End, exclusive.

        Returns:
            Index of the sum along the P axis.
        """
        key = (start, stop)
        if key not in self._entry_of_span:
            self._entry_of_span[key] = len(self.spans)
            self.spans.append(key)
        return self._entry_of_span[key]

    def every_token(self, start: int, stop: int) -> TokenRange:
        """Request each token of a range, at the K layers.

        Args:
            start: First place in the packed sequence.
            stop: End, exclusive.

        Returns:
            Range of the tokens along the W axis, end exclusive.
        """
        key = (start, stop)
        if key not in self._entries_of_every:
            first = len(self.every)
            self.every += range(start, stop)
            self._entries_of_every[key] = (first, len(self.every))
        return self._entries_of_every[key]


@dataclass(frozen=True, eq=False)
class Observed:
    """Observed values of one pass at one hook point.

    Attributes:
        tokens_LED: float32, the requested tokens.
        sums_LPD: float32, the sum over each requested span.
        every_KWD: float32, in main memory: the tokens requested at the K layers.
    """

    tokens_LED: torch.Tensor
    sums_LPD: torch.Tensor
    every_KWD: torch.Tensor

    def cpu(self) -> Observed:
        """Return a copy in main memory."""
        return Observed(self.tokens_LED.cpu(), self.sums_LPD.cpu(), self.every_KWD)
