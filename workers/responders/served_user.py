"""A server plays the user of a dialogue, through the OpenAI protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...jobs.errors import UnitError
from ...jobs.specs.spec_parts import GenerationSpec, SamplingSpec
from ...jobs.work.units import RolloutRequest
from ..engine import CapturedRollout, Responder
from .chat_client import RETRIES, ChatClient, Retries
from .request_loop import RequestLoop
from .users import Said


class ServedUser:
    """A server plays the user.

    Args:
        responder: The model under study.
        server: Address of the server, and the number of concurrent requests.
        sampling: How the user's messages are sampled.
        retries: How often a request is tried.
        left_out: Fields of a request that the server does not take, as its check found.
        on_wait: Called with a sentence when the server does not answer, and with ``""`` once it does.
    """

    def __init__(
        self,
        responder: Responder,
        server: GenerationSpec,
        sampling: SamplingSpec,
        retries: Retries = RETRIES,
        left_out: Sequence[str] = (),
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._responder = responder
        self._server = server
        self._sampling = sampling
        self._retries = retries
        self._left_out = tuple(left_out)
        self._on_wait = on_wait
        self._client: ChatClient | None = None
        self._loop: RequestLoop[Said] | None = None

    @property
    def num_asked(self) -> int:
        """Number of requests whose messages were not taken yet."""
        return 0 if self._loop is None else self._loop.in_flight

    @property
    def is_busy(self) -> bool:
        """Whether as many requests are in flight as the server is sent at a time."""
        return self.num_asked >= self._server.concurrency

    def ask(self, request: RolloutRequest) -> None:
        """Send the request for a message of the user."""
        assert self._loop is not None, "it is asked while rows are made"
        self._loop.start(self._said(request))

    def answers(self, *, wait: bool) -> list[Said]:
        """Return what was said since; see ``User.answers``."""
        return [] if self._loop is None else self._loop.results(wait=wait and self.num_asked > 0)

    def rows(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Answer complete requests while the server is connected; see ``User.rows``."""
        client = ChatClient(self._server, self._server.model or "", {}, self._retries, self._left_out, self._on_wait)
        with RequestLoop[Said](client) as loop:
            self._client, self._loop = client, loop
            try:
                yield from self._responder.generate(next_request)
            finally:
                self._client = self._loop = None

    async def _said(self, request: RolloutRequest) -> Said:
        client, turn = self._client, request.user
        assert client is not None
        assert turn is not None
        name = f"{request.address}, message of the user"
        messages = [{"role": message.role, "content": message.content} for message in turn.messages]
        try:
            return Said(request, (await client.complete(messages, self._sampling, turn.seed, name)).text)
        except UnitError as error:
            return Said(request, error=error)
        except Exception as error:  # noqa: BLE001 - passed to the caller: an error left in the task is never raised
            return Said(request, error=UnitError(f"{name}: {error!r}.", code="endpoint_failed"))
