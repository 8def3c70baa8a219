"""Read texts that exist already and pool what their response spans show: packed passes, nothing generated.

No LM head, no block above the highest captured one, no cache, no padding. As many texts go to a pass as its token
budget holds, those that begin alike next to each other: a beginning that they share, a system prompt for instance, is
read once, with the first of them.
Axes: L captured layers, K those of which every token is kept, P spans of a pass, E tokens of a pass that are looked at,
W content tokens of all its responses, T of one, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...jobs.errors import UnitError
from ...jobs.rollouts import ArrayName
from ...jobs.spec import TOKENS
from ..engine import CapturedText, EngineSettings, TokenisedText
from .capture import Seen, require_finite
from .generation import LoadedModel
from .packed import PackedPass, Segment

_Arrays = dict[ArrayName, npt.NDArray[np.float32]]

_PASS_TOKENS = 4096
"""Tokens of one pass at most, a single longer text aside: more make no pass quicker and take memory."""

_LEAST_SHARED = 8
"""Tokens that a shared beginning must have to be worth a mask of its own."""


@dataclass(frozen=True)
class _Reading:
    """A text in a pass.

    Attributes:
        index: Of the text, among all.
        text: The text.
        shared: How many of its first tokens another text of the pass reads for it.
        leader: Which, counted in the pass.
    """

    index: int
    text: TokenisedText
    shared: int = 0
    leader: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that it takes of the pass; nothing after the last response is ever looked at."""
        return _length(self.text) - self.shared


def capture_texts(loaded: LoadedModel, settings: EngineSettings, texts: Sequence[TokenisedText]) -> list[CapturedText]:
    """Read and capture; see ``Reader.capture``."""
    for text in texts:
        _check(text, loaded.max_context)
    captured: dict[int, CapturedText] = {}
    with torch.inference_mode():
        for readings in _passes(texts, min(settings.batch_tokens, _PASS_TOKENS)):
            captured |= zip((reading.index for reading in readings), _read(loaded, settings, readings), strict=True)
    return [captured[index] for index in range(len(texts))]


def _length(text: TokenisedText) -> int:
    return text.responses[-1][1] if text.responses else 0


def _check(text: TokenisedText, max_context: int) -> None:
    last = 0
    for start, stop in text.responses:
        if not last <= start <= stop <= len(text.token_ids) or start == 0:
            raise UnitError(
                f"{text.name}: a response span [{start}, {stop}) does not lie after a prompt in {len(text.token_ids)} "
                "tokens, in ascending order.",
                code="bad_span",
            )
        last = stop
    if _length(text) > max_context:
        raise UnitError(
            f"{text.name}: {_length(text)} tokens exceed the model's context of {max_context}.", code="too_long"
        )


def _passes(texts: Sequence[TokenisedText], budget: int) -> Iterator[list[_Reading]]:
    """Cut texts, in the order of their tokens, into passes that stay within a budget of tokens."""
    readings: list[_Reading] = []
    leader = total = 0
    for index in sorted(range(len(texts)), key=lambda index: texts[index].token_ids):
        shared = _num_shared(readings[leader].text, texts[index]) if readings else 0
        reading = _Reading(index, texts[index], shared, leader)
        if readings and total + reading.num_tokens > budget:
            yield readings
            readings, total, shared = [], 0, 0
        if not shared:
            leader = len(readings)
            reading = _Reading(index, texts[index])
        readings.append(reading)
        total += reading.num_tokens
    if readings:
        yield readings


def _num_shared(leader: TokenisedText, text: TokenisedText) -> int:
    """Count the tokens with which both begin; all of them in both prompts, and neither prompt whole."""
    most = min((first.responses[0][0] - 1 if first.responses else 0) for first in (leader, text))
    pairs = zip(leader.token_ids[:most], text.token_ids[:most], strict=True)
    shared = next((place for place, (one, other) in enumerate(pairs) if one != other), most)
    return shared if shared >= _LEAST_SHARED else 0


def _read(loaded: LoadedModel, settings: EngineSettings, readings: Sequence[_Reading]) -> list[CapturedText]:
    segments: list[Segment] = []
    token_ids: list[int] = []
    wants_prompt_mean = "prompt_mean" in settings.capture.poolings
    spans: list[tuple[int, int]] = []
    beginnings: list[tuple[int, int]] = []
    ends: list[int] = []
    content: list[int] = []
    begins: list[int] = []
    for reading in readings:
        first, text, shared = len(token_ids), reading.text, reading.shared
        begins.append(first)
        # Where the text would begin if all of it stood here.
        begin = first - shared
        if reading.num_tokens:
            begins_at = begins[reading.leader]
            segments.append(Segment(shared, reading.num_tokens, begins_at=begins_at))
            token_ids += text.token_ids[shared : shared + reading.num_tokens]
            if shared:
                beginnings.append((begins_at, begins_at + shared if wants_prompt_mean else begins_at))
        for start, stop in text.responses:
            # A span that nobody wants is empty, so that the others keep their places.
            spans.append((first, begin + start if wants_prompt_mean else first))
            spans.append(
                (begin + start, begin + stop if "response_mean" in settings.capture.poolings else begin + start)
            )
            if settings.token_layers:
                content += range(begin + start, begin + stop)
            # The last token of an empty response is none; the prompt's stands in and is not used.
            ends += [begin + start - 1, begin + max(start, stop - 1) if stop > start else begin + start - 1]
    if not segments:
        return [CapturedText((), ()) for _ in readings]
    layout = PackedPass(settings.device, segments)
    _, seen = loaded.capture.watch(
        lambda: layout.run(loaded.model, token_ids, None),
        tokens=ends,
        spans=spans + beginnings if any(name.endswith("_mean") for name in settings.capture.poolings) else [],
        num_tokens=len(token_ids),
        device=settings.device,
        whole=content,
        stop_at_top=True,
    )
    whose = f"{readings[0].text.name} or a text beside it"
    for point, shown in seen.items():
        require_finite(shown.tokens_LED, settings.layers, f"{point} of a token of {whose}")
        require_finite(shown.sums_LPD, settings.layers, f"{point} of a span of {whose}")
        require_finite(shown.whole_KWD, settings.token_layers, f"{point} of a token of {whose}")
    kept = {point: replace(s, tokens_LED=s.tokens_LED.cpu(), sums_LPD=s.sums_LPD.cpu()) for point, s in seen.items()}
    captured: list[CapturedText] = []
    entry = token = 0
    beginning = len(spans)
    for reading in readings:
        responses, shared = reading.text.responses, reading.shared
        vectors = tuple(
            _vectors(settings, kept, entry + 2 * i, span, beginning if shared else None)
            for i, span in enumerate(responses)
        )
        tokens: list[_Arrays] = []
        for start, stop in responses:
            tokens.append(_tokens(kept, token, stop - start) if settings.token_layers else {})
            token += stop - start
        captured.append(CapturedText(vectors, tuple(tokens)))
        entry += 2 * len(responses)
        beginning += shared > 0
    return captured


def _tokens(seen: dict[Any, Seen], first: int, length: int) -> _Arrays:
    """Take one response's tokens out of those of the pass; a copy, so that the others do not stay with it."""
    return {(point, TOKENS): shown.whole_KWD[:, first : first + length].numpy().copy() for point, shown in seen.items()}


def _vectors(
    settings: EngineSettings, seen: dict[Any, Seen], entry: int, span: tuple[int, int], beginning: int | None
) -> _Arrays:
    """Pool one response and its prompt.

    Args:
        settings: What is wanted.
        seen: Of the pass.
        entry: Where the prompt, or what the text has read of it itself, stands in what was seen; then the response.
        span: The response's.
        beginning: Where the sum over a beginning stands that another text has read.
    """
    start, stop = span
    vectors: _Arrays = {}
    for point in settings.capture.hook_points:
        for name in settings.capture.pooled:
            of_response = name.startswith("response_")
            place, length = (entry + 1, stop - start) if of_response else (entry, start)
            if length == 0:
                vector_LD = torch.full_like(seen[point].tokens_LED[:, place], torch.nan)
            elif name.endswith("_mean"):
                vector_LD = seen[point].sums_LPD[:, place]
                if beginning is not None and not of_response:
                    vector_LD = vector_LD + seen[point].sums_LPD[:, beginning]
                vector_LD = vector_LD / length
            else:
                vector_LD = seen[point].tokens_LED[:, place]
            vectors[point, name] = vector_LD.contiguous().numpy().copy()
    return vectors
