"""What the poolings want observed of one forward pass, and what the pass showed.

A pass runs over one line of tokens of many conversations, so places and spans here are places in that line and not
positions in a conversation. Knows no model and no pooling.
Axes: L captured layers, K those of which every token is kept, E tokens observed of all L layers, P spans summed, W
tokens observed of the K layers alone, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..jobs.poolings import TokenRange


@dataclass(eq=False)
class Wanted:
    """Collects what is to be observed of a pass; asking twice for the same token or span observes it once.

    Attributes:
        tokens: E places in the line.
        spans: P spans of the line, end exclusive; each is added up on the device.
        every: W places in the line, wanted of K layers alone.
    """

    tokens: list[int] = field(default_factory=list)
    spans: list[TokenRange] = field(default_factory=list)
    every: list[int] = field(default_factory=list)
    _entry_of_token: dict[int, int] = field(default_factory=dict)
    _entry_of_span: dict[TokenRange, int] = field(default_factory=dict)
    _entries_of_every: dict[TokenRange, TokenRange] = field(default_factory=dict)

    @classmethod
    def first_tokens(cls, count: int) -> Wanted:
        """Want each of the first tokens of the line, whose entries are then their places.

        Args:
            count: How many; in generation one for each slot that decodes.
        """
        return cls(tokens=list(range(count)), _entry_of_token={place: place for place in range(count)})

    def token(self, place: int) -> int:
        """Want a token as it is.

        Args:
            place: In the line.

        Returns:
            Its entry among the E.
        """
        if place not in self._entry_of_token:
            self._entry_of_token[place] = len(self.tokens)
            self.tokens.append(place)
        return self._entry_of_token[place]

    def span(self, start: int, stop: int) -> int:
        """Want the sum over a span.

        Args:
            start: First place in the line.
            stop: One after the last.

        Returns:
            Its entry among the P.
        """
        key = (start, stop)
        if key not in self._entry_of_span:
            self._entry_of_span[key] = len(self.spans)
            self.spans.append(key)
        return self._entry_of_span[key]

    def every_token(self, start: int, stop: int) -> TokenRange:
        """Want each token of a span at the K layers.

        Args:
            start: First place in the line.
            stop: One after the last.

        Returns:
            Their entries among the W, end exclusive.
        """
        key = (start, stop)
        if key not in self._entries_of_every:
            first = len(self.every)
            self.every += range(start, stop)
            self._entries_of_every[key] = (first, len(self.every))
        return self._entries_of_every[key]


@dataclass(frozen=True, eq=False)
class Observed:
    """What one pass showed at one hook point.

    Attributes:
        tokens_LED: float32, the wanted tokens.
        sums_LPD: float32, the sum over each wanted span.
        every_KWD: float32, in the machine's memory: the tokens wanted of K layers.
    """

    tokens_LED: torch.Tensor
    sums_LPD: torch.Tensor
    every_KWD: torch.Tensor

    def cpu(self) -> Observed:
        """Return the same in the machine's memory."""
        return Observed(self.tokens_LED.cpu(), self.sums_LPD.cpu(), self.every_KWD)
