"""A responder whose responses come from a server: it sends prompts concurrently and captures each response by prefill.

Requests run on an event loop in a separate thread, so that the server keeps generating while this process captures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ...jobs.errors import InputError, UnitError
from ...jobs.messages import ChatMessage
from ...jobs.specs.spec_parts import GenerationSpec, SamplingSpec
from ...jobs.work.rollouts import Rollout
from ...jobs.work.units import RolloutRequest
from ..chat.checks import turn_end
from ..chat.renderer import ChatRenderer
from ..chat.spans import ConversationRenderer
from ..chat.user_span import UserSpans
from ..engine import CapturedRollout, Reader, TokenisedText
from .answers import Completion
from .chat_client import CHECK_RETRIES, NEUTRAL_SAMPLING, RETRIES, ChatClient, Retries
from .readings import Reading, read
from .request_loop import RequestLoop
from .served_rollouts import ServedRollouts, other_prompt


@dataclass(frozen=True, slots=True)
class _Answered:
    request: RolloutRequest
    completion: Completion | None
    error: BaseException | None = None
    rollout: Rollout | None = None


class EndpointResponder:
    """Generates on a server, and captures in a prefill pass over prompt and response.

    Args:
        reader: The model that captures, the same as the server's.
        conversations: Renders conversations for that model.
        generation: Address of the server, and the number of concurrent requests.
        model: Name of the model on the server.
        sampling: How the server samples tokens.
        retries: How often a request is tried.
        user_spans: Locates user messages; None where no pooling needs them.
        left_out: Fields of a request that the server does not take, as ``check_endpoint`` found.
        on_wait: Called with a sentence when the server does not answer and requests are retried, and with ``""`` once
            it answers; in another thread.
        held_tokens: Tokens of answers to wait for, as long as others are in flight, before they are read.

    Attributes:
        prefetch: 1, because the requests of a whole unit are sent at once.
    """

    def __init__(
        self,
        reader: Reader,
        conversations: ConversationRenderer,
        generation: GenerationSpec,
        model: str,
        sampling: SamplingSpec,
        retries: Retries = RETRIES,
        user_spans: UserSpans | None = None,
        left_out: Sequence[str] = (),
        on_wait: Callable[[str], None] = lambda _: None,
        held_tokens: int = 0,
    ) -> None:
        self.reader = reader
        self._held_tokens = held_tokens
        self._on_wait = on_wait
        self.prefetch = 1
        self._left_out = tuple(left_out)
        self._rollouts = ServedRollouts(conversations, sampling, self._left_out)
        self._user_spans = user_spans
        self._conversations = conversations
        self._generation = generation
        self._model = model
        self._sampling = sampling
        self._retries = retries
        self._turn_end = turn_end(conversations.renderer)

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate on the server and capture; see ``Responder.generate``."""
        renderer = self._conversations.renderer
        client = ChatClient(
            self._generation, self._model, renderer.server_options, self._retries, self._left_out, self._on_wait
        )
        with _Requests(client, renderer, self._sampling) as requests:
            refused: BaseException | None = None
            held: list[_Answered] = []

            def fill() -> None:
                while refused is None and requests.in_flight < self._generation.concurrency:
                    request = next_request()
                    if request is None:
                        return
                    requests.send(request)

            fill()
            while requests.in_flight:
                answered = [self._with_rollout(answer) for answer in requests.results()]
                # The other requests in flight did not cause the error: they are finished before it is raised.
                refused = next((answer.error for answer in answered if answer.error is not None), refused)
                # Fill before reading, so that the server is busy while this process captures; and after, because the
                # captured replies may lead to further requests.
                fill()
                held += [answer for answer in answered if answer.error is None]
                if requests.in_flight and _num_tokens(held) < self._held_tokens:
                    continue
                yield from self._read(held)
                held = []
                fill()
            if refused is not None:
                raise refused

    def _read(self, answered: Sequence[_Answered]) -> Iterator[CapturedRollout]:
        return read(self.reader, [self._reading(answer) for answer in answered])

    def _reading(self, answer: _Answered) -> Reading:
        rollout = answer.rollout
        assert rollout is not None
        spans = self._user_spans
        user_span = spans.of_prompt(answer.request.messages, rollout.prompt_token_ids) if spans else None
        # Interventions with edits were refused before; one without edits is still part of the answer.
        return Reading(TokenisedText.of(rollout, user_span, answer.request.intervention), (rollout,))

    def _with_rollout(self, answer: _Answered) -> _Answered:
        """Add the rollout of an answer, or the reason why its tokens are not those of a response to the prompt."""
        if answer.completion is None:
            return answer
        try:
            completion = replace(answer.completion, text=self._without_end(answer.completion.text))
            return replace(answer, rollout=self._rollouts.make(answer.request, completion))
        except UnitError as error:
            return replace(answer, error=error)

    def _without_end(self, text: str) -> str:
        """Remove the token that ends a turn, which some servers leave at the end of the text."""
        return text.removesuffix(self._turn_end) if self._turn_end else text


def _num_tokens(answered: Sequence[_Answered]) -> int:
    rollouts = [answer.rollout for answer in answered if answer.rollout is not None]
    return sum(len(rollout.prompt_token_ids) + len(rollout.response_token_ids) for rollout in rollouts)


def _refuse_intervention(request: RolloutRequest) -> None:
    """Refuse a request with an intervention: a server cannot edit the residual stream while it generates.

    Raises:
        UnitError: The request has an intervention.
    """
    if request.intervention is not None and request.intervention.edits:
        raise UnitError(
            f"{request.address}: the request carries an intervention, which a server cannot apply.",
            code="no_intervention",
        )


def _refuse_control_tokens(request: RolloutRequest, renderer: ChatRenderer) -> None:
    """Refuse a prompt that spells a control token: a server would read it as one, and the capture reads it as text.

    Raises:
        UnitError: A message of the request spells one.
    """
    spelt = renderer.control_tokens.spelt_in([message.content for message in request.messages])
    if spelt:
        raise UnitError(
            f"{request.address}: a message spells {', '.join(sorted(spelt))}, which a server would take for the real "
            "token.",
            code="control_tokens",
        )


class _Requests(RequestLoop[_Answered]):
    """Requests in flight for responses."""

    def __init__(self, client: ChatClient, renderer: ChatRenderer, sampling: SamplingSpec) -> None:
        super().__init__(client)
        self._renderer = renderer
        self._sampling = sampling

    def send(self, request: RolloutRequest) -> None:
        """Send a request without waiting for its response."""
        self.start(self._answer(request))

    async def _answer(self, request: RolloutRequest) -> _Answered:
        name = str(request.address)
        try:
            _refuse_intervention(request)
            _refuse_control_tokens(request, self._renderer)
            messages = self._renderer.for_template(request.messages)
            return _Answered(request, await self._client.complete(messages, self._sampling, request.seed, name))
        except UnitError as error:
            return _Answered(request, None, error)
        except Exception as error:  # noqa: BLE001 - passed to the caller: an error left in the task is never raised
            return _Answered(request, None, UnitError(f"{name}: {error!r}.", code="endpoint_failed"))


_PROBE = (ChatMessage("user", "Hi"),)


def check_endpoint(
    generation: GenerationSpec, model: str, renderer: ChatRenderer, retries: Retries = CHECK_RETRIES
) -> tuple[str, ...]:
    """Check that a server answers and serves the model, before the model is loaded here.

    Args:
        generation: Address of the server.
        model: Name of the model on the server.
        renderer: Renders for the model; its template options are sent along.
        retries: How often the request is tried.

    Returns:
        Fields of a request that the server does not take.

    Raises:
        InputError: The server does not answer or does not serve the model, or it renders prompts otherwise; names the
            field of the spec.
    """

    async def ask() -> tuple[str, ...]:
        async with ChatClient(generation, model, renderer.server_options, retries) as client:
            found = await client.check(renderer.for_template(_PROBE))
        ours = renderer.render(_PROBE)
        if found.prompt_token_ids is not None and list(found.prompt_token_ids) != ours:
            raise InputError(
                other_prompt(ours, found.prompt_token_ids),
                code="other_prompt",
                field="generation.endpoint",
                hint="Serve the files of model.source with their own chat template; one that writes today's date "
                "cannot be served.",
            )
        return found.left_out

    return asyncio.run(ask())


def describe_requests(sampling: SamplingSpec, left_out: Sequence[str] | None) -> dict[str, object]:
    """Describe what a server is sent, for the run's record, as plain JSON values.

    Args:
        sampling: How the server is asked to sample.
        left_out: Fields that it does not take; None where that is not known yet.
    """
    known = {} if left_out is None else {"left_out": list(left_out)}
    sent = sampling.model_dump() | {n: value for n, value in NEUTRAL_SAMPLING.items() if n not in (left_out or ())}
    return {"sampling": sent, **known}
