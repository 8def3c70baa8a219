"""From responses that exist, given or answered by a server, to captured rollouts: what their responders share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...jobs.rollouts import Rollout
from ..engine import CapturedRollout, Reader, TokenisedText


@dataclass(frozen=True, slots=True)
class Reading:
    """A text to be read.

    Attributes:
        text: The text.
        rollouts: One for each of its response spans, in their order.
    """

    text: TokenisedText
    rollouts: tuple[Rollout, ...]


def read(reader: Reader, readings: Sequence[Reading]) -> Iterator[CapturedRollout]:
    """Have texts read in one call, and give each rollout what was captured of its response.

    Args:
        reader: The model.
        readings: Any number, none as well.

    Yields:
        Every rollout, in the order of the readings.
    """
    if not readings:
        return
    for reading, captured in zip(readings, reader.capture([reading.text for reading in readings]), strict=True):
        text, spans = reading.text, reading.text.spans
        for rollout, vectors, tokens, span in zip(
            reading.rollouts, captured.vectors_LD, captured.tokens_KTD, spans, strict=True
        ):
            yield CapturedRollout(rollout, vectors, tokens, span.user, text.intervention)
