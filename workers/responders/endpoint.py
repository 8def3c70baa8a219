"""An engine whose responses a server generates: prompts go out, many at a time, and what comes back is read here.

Requests live on an event loop in a thread of its own, so that the server goes on generating while this one captures.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ...jobs.errors import UnitError
from ...jobs.rollouts import Canary, Rollout
from ...jobs.spec import GenerationSpec, SamplingSpec
from ...jobs.units import RolloutRequest
from ..chat.renderer import ChatRenderer
from ..chat.spans import ConversationRenderer
from ..chat.user_span import UserSpans
from ..engine import CapturedRollout, CapturedText, Engine, TokenisedText
from .chat_client import CHECK_RETRIES, RETRIES, ChatClient, Completion, Retries


@dataclass(frozen=True, slots=True)
class _Answered:
    request: RolloutRequest
    completion: Completion | None
    error: BaseException | None = None


class EndpointEngine:
    """Has prompts answered by a server and captures by a pass over prompt and response.

    Args:
        reader: What captures, a copy of the model that the server holds.
        conversations: Of the same model.
        generation: Which server.
        model: What it calls the model.
        sampling: Of the responses.
        retries: How often a request is tried.
        user_spans: Finds the user's words; None where no pooling is over them.
    """

    def __init__(
        self,
        reader: Engine,
        conversations: ConversationRenderer,
        generation: GenerationSpec,
        model: str,
        sampling: SamplingSpec,
        retries: Retries = RETRIES,
        user_spans: UserSpans | None = None,
    ) -> None:
        self._user_spans = user_spans
        self._reader = reader
        self._conversations = conversations
        self._generation = generation
        self._model = model
        self._sampling = sampling
        self._retries = retries
        self.layers = reader.layers
        self.canary_limit = reader.canary_limit

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Read texts; see ``Engine.capture``."""
        return self._reader.capture(texts)

    def canary(self, captured: CapturedRollout) -> Canary | None:
        """Recompute a rollout; see ``Engine.canary``."""
        return self._reader.canary(captured)

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Have responses generated and capture them; see ``Engine.generate``."""
        renderer = self._conversations.renderer
        client = ChatClient(self._generation, self._model, renderer.server_options, self._retries)
        with _Requests(client, renderer, self._sampling) as requests:
            refused: BaseException | None = None

            def fill() -> None:
                while refused is None and requests.in_flight < self._generation.concurrency:
                    request = next_request()
                    if request is None:
                        return
                    requests.send(request)

            fill()
            while requests.in_flight:
                answered = requests.wait()
                # Those that are under way are not at fault: they are finished before the error is raised.
                refused = next((answer.error for answer in answered if answer.error is not None), refused)
                # Before reading, so that the server has something to do meanwhile; after, for what came free since.
                fill()
                yield from self._read([answer for answer in answered if answer.error is None])
                fill()
            if refused is not None:
                raise refused

    def _read(self, answered: Sequence[_Answered]) -> Iterator[CapturedRollout]:
        rollouts = [self._rollout(answer) for answer in answered]
        texts = [self._text(rollout) for rollout in rollouts]
        captured = self._reader.capture(texts) if texts else []
        for rollout, text, read in zip(rollouts, texts, captured, strict=True):
            yield CapturedRollout(rollout, read.vectors_LD[0], read.tokens_KTD[0], text.spans[0].user)

    def _text(self, rollout: Rollout) -> TokenisedText:
        prompt_ids = rollout.prompt_token_ids
        user = ()
        if self._user_spans is not None:
            user = (self._user_spans.of_prompt(rollout.system_prompt, rollout.question, prompt_ids),)
        response = (len(prompt_ids), len(prompt_ids) + rollout.num_content_tokens)
        return TokenisedText(str(rollout.address), (*prompt_ids, *rollout.response_token_ids), (response,), user)

    def _rollout(self, answer: _Answered) -> Rollout:
        request, completion = answer.request, answer.completion
        assert completion is not None
        prompt_ids, response_ids = self._conversations.answer(request.system_prompt, request.question, completion.text)
        return Rollout(
            address=request.address,
            system_prompt=request.system_prompt,
            question=request.question,
            response=completion.text,
            prompt_token_ids=tuple(prompt_ids),
            response_token_ids=tuple(response_ids),
            num_content_tokens=len(response_ids),
            finish_reason=completion.finish_reason,
            seed=request.seed,
        )


class _Requests:
    """Requests in flight, on an event loop in a thread. A context manager: leaving it drops what is still under way."""

    def __init__(self, client: ChatClient, renderer: ChatRenderer, sampling: SamplingSpec) -> None:
        self._client = client
        self._renderer = renderer
        self._sampling = sampling
        self._answers: queue.SimpleQueue[_Answered] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._tasks: set[Future[None]] = set()
        self.in_flight = 0

    def __enter__(self) -> _Requests:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._client.__aenter__(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def send(self, request: RolloutRequest) -> None:
        """Ask for a response."""
        self.in_flight += 1
        task = asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wait(self) -> list[_Answered]:
        """Give what has been answered, waiting for the first if there is nothing yet."""
        answered = [self._answers.get()]
        while not self._answers.empty():
            answered.append(self._answers.get())
        self.in_flight -= len(answered)
        return answered

    async def _answer(self, request: RolloutRequest) -> None:
        name = str(request.address)
        try:
            if request.intervention is not None and request.intervention.edits:
                raise UnitError(
                    f"{name}: the request carries an intervention, and a server generates with the model as it is.",
                    code="no_intervention",
                )
            said = [{"role": "user", "content": request.question}]
            messages = self._renderer.messages(request.system_prompt, said)
            answered = _Answered(request, await self._client.complete(messages, self._sampling, request.seed, name))
        except UnitError as error:
            answered = _Answered(request, None, error)
        except Exception as error:  # noqa: BLE001 - told and not lost: nobody looks at a task's own error
            answered = _Answered(request, None, UnitError(f"{name}: {error!r}.", code="endpoint_failed"))
        self._answers.put(answered)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.__aexit__()


def check_endpoint(
    generation: GenerationSpec, model: str, renderer: ChatRenderer, retries: Retries = CHECK_RETRIES
) -> None:
    """Make sure that a server is there and serves the model, before a model is loaded here.

    Raises:
        InputError: It does not; names the field of the spec.
    """

    async def ask() -> None:
        async with ChatClient(generation, model, renderer.server_options, retries) as client:
            await client.check()

    asyncio.run(ask())
