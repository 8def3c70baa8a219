"""Read texts that exist: vLLM computes each as a prompt, of which the sums over its spans are kept.

Texts that begin alike share vLLM's prefix cache. What a text reads from it is not computed, and only vLLM's scheduler
decides how much that is; so a text of which tokens are missing for this reason is read once more, without the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...jobs.engines import VLLM_READING_SLOTS
from ..builtin.reading import require_readable
from ..engine import CapturedText, EngineSettings, TokenisedText
from .capture_plan import WorkerPlan
from .flights import Box, Flights, Landed, SlotCapture
from .limits import no_room
from .model import ServedModel
from .pooled import Arrays, pooled, wrong_tokens

_PARAMETERS: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": 1,
    "ignore_eos": True,
}
"""A text is a prompt, after which vLLM must sample a token; nobody looks at it."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """Some responses of one text, which one request to vLLM reads.

    Attributes:
        index: Which text.
        first: Index of the first of these responses in the whole text.
        text: The text, with these responses alone, up to the last token that is needed.
        is_cached: Whether vLLM may take its first tokens from the cache.
    """

    index: int
    first: int
    text: TokenisedText
    is_cached: bool


_Found = dict[tuple[int, int], tuple[Arrays, Arrays]]
"""Vectors and tokens by text and response."""


class VllmReader:
    """Reads texts with one vLLM.

    Args:
        flights: The requests that vLLM is working on.
        model: The model.
        settings: Captured layers and poolings.
        plan: What vLLM's workers capture.
    """

    def __init__(self, flights: Flights, model: ServedModel, settings: EngineSettings, plan: WorkerPlan) -> None:
        self._flights = flights
        self._model = model
        self._settings = settings
        self._plan = plan

    def read(self, texts: Sequence[TokenisedText], *, is_cached: bool = True) -> list[CapturedText]:
        """Capture texts; see ``Reader.capture``.

        Args:
            texts: The texts.
            is_cached: Whether vLLM may take their first tokens from its cache.
        """
        for text in texts:
            require_readable(text, self._settings.capture, self._model.max_context)
            if len(text.token_ids) > self._flights.max_conversation:
                raise no_room(text.name, len(text.token_ids), self._flights.max_conversation)
        waiting = deque(
            reading for index, text in enumerate(texts) for reading in _readings(index, text, is_cached=is_cached)
        )
        found: _Found = {}
        box: Box = deque()
        in_flight = 0
        try:
            while waiting or in_flight:
                while waiting and self._flights.num_free_slots >= len(waiting[0].text.responses):
                    sent = self._send(waiting[0], box, found)
                    if sent is None:
                        break
                    waiting.popleft()
                    in_flight += sent
                if (in_flight or waiting) and not box:
                    self._flights.step()
                while box:
                    in_flight -= 1
                    waiting.extendleft(self._landed(box.popleft(), found))
        finally:
            self._flights.abandon(box)
        captured: list[CapturedText] = []
        for index, text in enumerate(texts):
            pairs = [found[index, number] for number in range(len(text.responses))]
            captured.append(CapturedText(tuple(vectors for vectors, _ in pairs), tuple(tokens for _, tokens in pairs)))
        return captured

    def _send(self, reading: _Reading, box: Box, found: _Found) -> int | None:
        """Hand a reading to vLLM.

        Returns:
            How many requests that took: 0 where no token is needed. None where its edits have no room beside those of
            the requests in flight.
        """
        text = reading.text
        first_needed = self._plan.first_needed(text.spans)
        if first_needed is None:
            self._keep(reading, [self._nothing() for _ in text.responses], found)
            return 0
        parameters = _PARAMETERS | {"skip_reading_prefix_cache": not reading.is_cached or first_needed == 0}
        has_room = self._flights.send(
            text.token_ids,
            text.spans,
            parameters,
            box,
            reading,
            is_open=False,
            intervention=text.intervention,
        )
        return 1 if has_room else None

    def _landed(self, landed: Landed, found: _Found) -> list[_Reading]:
        """Keep the values of a reading that vLLM has done; return it where it must be done again."""
        reading: _Reading = landed.tag
        ids = reading.text.token_ids
        if reading.is_cached and any(
            wrong_tokens(slot, spans, ids) for slot, spans in zip(landed.slots, reading.text.spans, strict=True)
        ):
            return [replace(reading, is_cached=False)]
        self._keep(reading, landed.slots, found)
        return []

    def _keep(self, reading: _Reading, slots: Sequence[SlotCapture], found: _Found) -> None:
        text = reading.text
        for number, (slot, spans) in enumerate(zip(slots, text.spans, strict=True), start=reading.first):
            found[reading.index, number] = pooled(slot, self._settings, spans, text.token_ids, text.name)

    def _nothing(self) -> SlotCapture:
        """Return what a slot without tokens has."""
        plan, d_model = self._plan, self._model.d_model
        return SlotCapture(
            {key: np.zeros((len(plan.layers), d_model), dtype=np.float32) for key in plan.sums},
            dict.fromkeys(plan.sums, 0),
            dict.fromkeys(plan.sums, 0),
            np.empty((len(plan.token_layers), 0, d_model), dtype=np.float32),
            (),
        )


def _readings(index: int, text: TokenisedText, *, is_cached: bool) -> Iterator[_Reading]:
    """Divide a text into readings of as many responses as have slots, each up to the end of its last response."""
    intervention = text.intervention
    most = VLLM_READING_SLOTS
    if intervention is not None and intervention.of_prompt() != intervention:
        # What acts on responses acts on the one that is read: to those after it, it is part of the prompt.
        most = 1
    for first in range(0, len(text.responses), most):
        some = slice(first, first + most)
        part = replace(
            text,
            token_ids=text.token_ids[: text.responses[some][-1][1]],
            responses=text.responses[some],
            user_spans=text.user_spans[some],
        )
        yield _Reading(index, first, part, is_cached)
