"""Read texts that exist already and pool what their response spans show: packed passes, nothing generated.

No LM head, no block above the highest captured one, no cache, no padding. Texts go from the longest to the shortest, as
many to a pass as its token budget holds.
Axes: L captured layers, K those of which every token is kept, P spans of a pass, E tokens of a pass that are looked at,
W content tokens of all its responses, T of one, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..jobs.block import ArrayName
from ..jobs.errors import UnitError
from ..jobs.spec import TOKENS
from .capture import Seen, require_finite
from .engine import CapturedText, EngineSettings, TokenisedText
from .packed import PackedPass, Segment
from .streaming import LoadedModel

_Arrays = dict[ArrayName, npt.NDArray[np.float32]]

_PASS_TOKENS = 4096
"""Tokens of one pass at most, a single longer text aside: more make no pass quicker and take memory."""


def capture_texts(loaded: LoadedModel, settings: EngineSettings, texts: Sequence[TokenisedText]) -> list[CapturedText]:
    """Read and capture; see ``Engine.capture``."""
    for text in texts:
        _check(text, loaded.max_context)
    captured: dict[int, CapturedText] = {}
    with torch.inference_mode():
        for places in _passes([_length(text) for text in texts], min(settings.batch_tokens, _PASS_TOKENS)):
            captured |= zip(places, _read(loaded, settings, [texts[place] for place in places]), strict=True)
    return [captured[place] for place in range(len(texts))]


def _length(text: TokenisedText) -> int:
    """Tokens that matter: nothing after the last response is ever looked at."""
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


def _passes(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut the places of texts, longest first, into passes that stay within a budget of tokens."""
    places: list[int] = []
    total = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if places and total + lengths[place] > budget:
            yield places
            places, total = [], 0
        places.append(place)
        total += lengths[place]
    if places:
        yield places


def _read(loaded: LoadedModel, settings: EngineSettings, texts: Sequence[TokenisedText]) -> list[CapturedText]:
    segments: list[Segment] = []
    token_ids: list[int] = []
    spans: list[tuple[int, int]] = []
    ends: list[int] = []
    content: list[int] = []
    for text in texts:
        begin = len(token_ids)
        if _length(text):
            segments.append(Segment(0, _length(text)))
            token_ids += text.token_ids[: _length(text)]
        for start, stop in text.responses:
            # A span that nobody wants is empty, so that the others keep their places.
            spans.append((begin, begin + start if "prompt_mean" in settings.capture.poolings else begin))
            spans.append(
                (begin + start, begin + stop if "response_mean" in settings.capture.poolings else begin + start)
            )
            if settings.token_layers:
                content += range(begin + start, begin + stop)
            # The last token of an empty response is none; the prompt's stands in and is not used.
            ends += [begin + start - 1, begin + max(start, stop - 1) if stop > start else begin + start - 1]
    if not segments:
        return [CapturedText((), ()) for _ in texts]
    layout = PackedPass(settings.device, segments)
    _, seen = loaded.capture.watch(
        lambda: layout.run(loaded.model, token_ids, None),
        tokens=ends,
        spans=spans if any(name.endswith("_mean") for name in settings.capture.poolings) else [],
        num_tokens=len(token_ids),
        device=settings.device,
        whole=content,
        stop_at_top=True,
    )
    whose = f"{texts[0].name} or a text beside it"
    for point, shown in seen.items():
        require_finite(shown.tokens_LED, settings.layers, f"{point} of a token of {whose}")
        require_finite(shown.sums_LPD, settings.layers, f"{point} of a span of {whose}")
        require_finite(shown.whole_KWD, settings.token_layers, f"{point} of a token of {whose}")
    kept = {point: replace(s, tokens_LED=s.tokens_LED.cpu(), sums_LPD=s.sums_LPD.cpu()) for point, s in seen.items()}
    captured: list[CapturedText] = []
    first = token = 0
    for text in texts:
        vectors = tuple(_vectors(settings, kept, first + i, span) for i, span in enumerate(text.responses))
        tokens: list[_Arrays] = []
        for start, stop in text.responses:
            tokens.append(_tokens(kept, token, stop - start) if settings.token_layers else {})
            token += stop - start
        captured.append(CapturedText(vectors, tuple(tokens)))
        first += len(text.responses)
    return captured


def _tokens(seen: dict[Any, Seen], first: int, length: int) -> _Arrays:
    """Take one response's tokens out of those of the pass; a copy, so that the others do not stay with it."""
    return {(point, TOKENS): shown.whole_KWD[:, first : first + length].numpy().copy() for point, shown in seen.items()}


def _vectors(settings: EngineSettings, seen: dict[Any, Seen], index: int, span: tuple[int, int]) -> _Arrays:
    """Pool one response and its prompt; they are entries 2 i + 1 and 2 i of what was seen."""
    start, stop = span
    vectors: _Arrays = {}
    for point in settings.capture.hook_points:
        for name in settings.capture.pooled:
            of_response = name.startswith("response_")
            entry, length = (2 * index + 1, stop - start) if of_response else (2 * index, start)
            if length == 0:
                vector_LD = torch.full_like(seen[point].tokens_LED[:, entry], torch.nan)
            elif name.endswith("_mean"):
                vector_LD = seen[point].sums_LPD[:, entry] / length
            else:
                vector_LD = seen[point].tokens_LED[:, entry]
            vectors[point, name] = vector_LD.contiguous().numpy().copy()
    return vectors
