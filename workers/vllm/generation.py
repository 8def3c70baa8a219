"""Generate in vLLM's running batch, with capture.

vLLM never feeds the last token that it samples to the model, so nothing is captured of it. Of every response one token
more is asked for than wanted, and dropped: then the last token that is wanted is fed, and counts like the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ...jobs.engines import refuse_temperature
from ...jobs.errors import InputError, UnitError
from ...jobs.poolings import TokenSpans
from ...jobs.specs.spec_parts import SamplingSpec
from ...jobs.work.units import RolloutRequest
from ..builtin.batching.admission import RunningRollout, too_long
from ..chat.user_span import UserSpans
from ..engine import CapturedRollout, EngineSettings, StreamedRequest, TokenisedText
from .flights import Box, Flights, Landed
from .limits import no_room
from .model import ServedModel
from .pooled import pooled
from .reading import VllmReader


class VllmGeneration:
    """Answers requests with one vLLM.

    Args:
        flights: The requests that vLLM is working on.
        model: The model.
        settings: Sampling, captured layers and poolings.
        reader: Reads texts with the same vLLM.
        most: Most rollouts in flight.
        user_spans: Locates user messages; None where no pooling needs them.
        reads_prefixes: Whether vLLM may take the first tokens of a prompt from its cache; it may where no pooling is
            over them.
        is_seeded: Whether every rollout is sampled with its own seed.
        captures: Whether activations are captured; without, rollouts have no vectors.
    """

    def __init__(
        self,
        flights: Flights,
        model: ServedModel,
        settings: EngineSettings,
        reader: VllmReader,
        *,
        most: int,
        user_spans: UserSpans | None,
        reads_prefixes: bool,
        is_seeded: bool,
        captures: bool = True,
    ) -> None:
        self._flights = flights
        self._model = model
        self._settings = settings
        self._reader = reader
        self._most = most
        self._user_spans = user_spans
        self._reads_prefixes = reads_prefixes
        self._is_seeded = is_seeded
        self._captures = captures

    def run(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture, sampling as the settings say; see ``Responder.generate``."""

        def next_streamed() -> StreamedRequest | None:
            request = next_request()
            return None if request is None else StreamedRequest(request, self._settings.sampling)

        return self.stream(next_streamed)

    def stream(self, next_request: Callable[[], StreamedRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture, each request in its own way; see ``StreamingResponder.stream``."""
        box: Box = deque()
        in_flight = 0
        refused: UnitError | None = None
        waiting: StreamedRequest | None = None
        try:
            while True:
                while refused is None and in_flight < self._most and self._flights.num_free_slots:
                    streamed = waiting or next_request()
                    waiting = None
                    if streamed is None:
                        break
                    try:
                        if not self._send(streamed, box):
                            waiting = streamed
                            break
                        in_flight += 1
                    except UnitError as error:
                        # The rollouts in flight did not cause it, and end first.
                        refused = error
                    except InputError as error:
                        address = streamed.request.address
                        refused = UnitError(f"{address}: {error.message}", code=error.code, hint=error.hint)
                if not in_flight and waiting is None:
                    if refused is not None:
                        raise refused
                    return
                if not box:
                    self._flights.step()
                while box:
                    in_flight -= 1
                    yield self._finished(box.popleft())
        finally:
            self._flights.abandon(box)

    def _send(self, streamed: StreamedRequest, box: Box) -> bool:
        """Hand a request to vLLM; return whether it has it: its edits may have no room beside those in flight."""
        request, sampling = streamed.request, streamed.sampling
        refuse_temperature(sampling)
        if request.choices:
            raise UnitError(
                f"{request.address}: the request allows a few responses only, which the vLLM engine cannot keep to.",
                code="no_choices",
                hint="Set placement.engine to builtin.",
            )
        prompt_ids = self._model.renderer.render(request.messages)
        max_new = sampling.max_new_tokens
        if len(prompt_ids) + max_new > self._model.max_context:
            raise too_long(request, len(prompt_ids), max_new, self._model.max_context)
        if len(prompt_ids) + max_new > self._flights.max_conversation:
            raise no_room(str(request.address), len(prompt_ids) + max_new, self._flights.max_conversation)
        user_span = self._user_spans.of_prompt(request.messages, prompt_ids) if self._user_spans else None
        rollout = RunningRollout(request, sampling, prompt_ids, [], user_span, on_token=streamed.on_token)
        spans = TokenSpans((len(prompt_ids), len(prompt_ids)), user_span)
        return self._flights.send(
            prompt_ids,
            [spans],
            self._parameters(request, sampling),
            box,
            rollout,
            is_open=True,
            intervention=request.intervention,
            on_tokens=None if streamed.on_token is None else partial(self._append, rollout),
        )

    def _append(self, running: RunningRollout, token_ids: Sequence[int]) -> bool:
        """Append sampled tokens; return whether the response is to end, although vLLM would go on."""
        for token in token_ids:
            # The token that vLLM samples after the last one that is wanted is nobody's.
            if len(running.token_ids) == running.max_new or running.append(token, self._model.stop_ids):
                break
        return running.max_new < running.sampling.max_new_tokens

    def _parameters(self, request: RolloutRequest, sampling: SamplingSpec) -> dict[str, Any]:
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Neutral values of everything else that vLLM could take from the checkpoint.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": sampling.max_new_tokens + 1,
            "min_tokens": 0,
            "stop_token_ids": sorted(self._model.stop_ids),
            "seed": request.seed if self._is_seeded else None,
            "skip_reading_prefix_cache": not self._reads_prefixes,
        }

    def _finished(self, landed: Landed) -> CapturedRollout:
        running: RunningRollout = landed.tag
        if running.on_token is None:
            self._append(running, landed.token_ids)
        rollout = running.finished(self._model.tokenizer)
        start = len(running.prompt_ids)
        spans = TokenSpans((start, start + running.num_content), running.user_span)
        intervention = running.request.intervention
        if not self._captures:
            return CapturedRollout(rollout, {}, {}, running.user_span, intervention)
        if not landed.slots:
            # Its end was decided out here, and vLLM may have fed more tokens since, or not yet the last of it.
            (text,) = self._reader.read([TokenisedText.of(rollout, running.user_span, intervention)])
            return CapturedRollout(rollout, text.vectors_LD[0], text.tokens_KTD[0], running.user_span, intervention)
        token_ids = [*rollout.prompt_token_ids, *rollout.response_token_ids]
        vectors, tokens = pooled(landed.slots[0], self._settings, spans, token_ids, str(rollout.address))
        return CapturedRollout(rollout, vectors, tokens, running.user_span, intervention)
