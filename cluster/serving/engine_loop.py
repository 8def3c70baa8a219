"""Answer requests as they come, in the running batch of one engine, in a thread of its own.

A request joins the batch in the next pass after it was submitted and leaves it when its response has ended or nobody
waits for it any more. When a pass fails, the requests in it are run again one at a time, so that the one at fault fails
alone: its seed gives each the tokens that it had, and only what is new is told. Knows no HTTP and no axis.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...jobs.errors import AtlasError, EngineDied, UnitError
from ...jobs.specs.spec_parts import SamplingSpec
from ...jobs.work.addresses import RolloutAddress
from ...jobs.work.units import RolloutRequest
from ...workers.engine import CapturedRollout, StreamedRequest, StreamingResponder
from .text_stream import TextStream


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a response."""

    text: str


@dataclass(frozen=True, eq=False, slots=True)
class Finished:
    """A response has ended.

    Attributes:
        text: Its whole text.
        finish_reason: ``stop``: the model or a stop string ended it; ``length``: it has as many tokens as it may.
        captured: Its token ids and its activations.
    """

    text: str
    finish_reason: str
    captured: CapturedRollout


@dataclass(frozen=True, eq=False, slots=True)
class Failed:
    """There is no response, or no more of it.

    Attributes:
        error: Why; of the code ``stopped`` where the loop was closed.
    """

    error: AtlasError


Event = Piece | Finished | Failed


class LiveRequest:
    """A request of somebody who waits for it.

    Args:
        request: The request; its address is unique among those in flight.
        sampling: How its tokens are sampled, and at most how many.
        decode: Decodes token ids; called in the loop's thread.
        tell: Called in the loop's thread with each event. The last is ``Finished`` or ``Failed``; a request that was
            cancelled may get none.
        stops: Texts that end the response.
    """

    def __init__(
        self,
        request: RolloutRequest,
        sampling: SamplingSpec,
        decode: Callable[[Sequence[int]], str],
        tell: Callable[[Event], None],
        stops: Sequence[str] = (),
    ) -> None:
        self.request = request
        self._sampling = sampling
        self._tell = tell
        self._stream = TextStream(decode, stops)
        self._place = 0
        self._is_cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._is_cancelled.is_set()

    def cancel(self) -> None:
        """End it: it leaves the batch after the next pass. To be called from any thread, at any time."""
        self._is_cancelled.set()

    def streamed(self) -> StreamedRequest:
        """Return the request for the engine, from its first token on."""
        self._place = 0
        return StreamedRequest(self.request, self._sampling, self._on_token)

    def finish(self, captured: CapturedRollout) -> None:
        """Tell that the engine has ended the response."""
        if self.is_cancelled:
            return
        if tail := self._stream.finish():
            self._tell(Piece(tail))
        rollout = captured.rollout
        is_stopped = self._stream.is_stopped or rollout.finish_reason == "stop"
        self._tell(Finished(self._stream.text, "stop" if is_stopped else "length", captured))

    def fail(self, error: AtlasError) -> None:
        """Tell that there is no response, or no more of it."""
        if not self.is_cancelled:
            self._tell(Failed(error))

    def _on_token(self, token: int) -> bool:
        if self.is_cancelled:
            return True
        place, self._place = self._place, self._place + 1
        if place < self._stream.num_tokens:
            # Run again after a failure. What was told cannot be taken back, so the tokens must be the same.
            if self._stream.token(place) != token:
                raise UnitError("a response became another one when it was run again.", code="not_reproduced")
            return self._stream.is_stopped and self._place == self._stream.num_tokens
        if text := self._stream.add(token):
            self._tell(Piece(text))
        return self._stream.is_stopped


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of an engine loop.

    Attributes:
        running: In the batch, or the next to join it.
        waiting: Submitted, without a place in the batch yet.
        finished: Whose response has ended, since the start.
        cancelled: Which nobody waited for any more.
        failed: Without a response.
    """

    running: int
    waiting: int
    finished: int
    cancelled: int
    failed: int


class EngineLoop:
    """Runs an engine in a thread until it is closed.

    Args:
        responder: The engine. Nothing else may use it meanwhile.
    """

    def __init__(self, responder: StreamingResponder) -> None:
        self._responder = responder
        self._changed = threading.Condition()
        self._waiting: deque[LiveRequest] = deque()
        # Were in a pass that failed; each is run alone.
        self._suspects: deque[LiveRequest] = deque()
        self._running: dict[RolloutAddress, LiveRequest] = {}
        self._is_suspect_running = False
        self._numbers = {"finished": 0, "cancelled": 0, "failed": 0}
        self._end: AtlasError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """How many requests there are now, and how the others ended."""
        with self._changed:
            return Counts(len(self._running), len(self._waiting) + len(self._suspects), **self._numbers)

    @property
    def end(self) -> AtlasError | None:
        """Why it answers no further request; None while it does."""
        return self._end

    def submit(self, live: LiveRequest) -> None:
        """Have a request answered.

        Args:
            live: The request; its events are told from now on.

        Raises:
            AtlasError: The loop was closed, or its engine has ended.
        """
        with self._changed:
            if self._end is not None:
                raise self._end
            self._waiting.append(live)
            self._changed.notify()

    def close(self) -> None:
        """End all requests and the thread. May be called again."""
        self._close(UnitError("the server was stopped.", code="stopped"))
        self._thread.join()

    def _close(self, end: AtlasError) -> None:
        with self._changed:
            self._end = self._end or end
            left = [*self._running.values(), *self._suspects, *self._waiting]
            self._suspects.clear()
            self._waiting.clear()
            self._changed.notify()
        for live in left:
            live.fail(end)
            live.cancel()

    def _run(self) -> None:
        while self._end is None:
            try:
                for captured in self._responder.stream(self._next):
                    self._finish(captured)
            except EngineDied as error:
                self._close(error)
            except Exception as error:  # noqa: BLE001 - whatever a model raises is a request's failure, not the server's
                self._recover(error)

    def _next(self) -> StreamedRequest | None:
        """Return the next request for the batch; wait for one while nothing runs."""
        with self._changed:
            while self._end is None and not self._is_suspect_running:
                self._drop_cancelled()
                if self._suspects and not self._running:
                    self._is_suspect_running = True
                    return self._begin(self._suspects.popleft())
                if self._suspects:
                    return None
                if self._waiting:
                    return self._begin(self._waiting.popleft())
                if self._running:
                    return None
                self._changed.wait()
            return None

    def _begin(self, live: LiveRequest) -> StreamedRequest:
        self._running[live.request.address] = live
        return live.streamed()

    def _drop_cancelled(self) -> None:
        for queue in (self._suspects, self._waiting):
            for live in [live for live in queue if live.is_cancelled]:
                queue.remove(live)
                self._numbers["cancelled"] += 1

    def _finish(self, captured: CapturedRollout) -> None:
        with self._changed:
            live = self._running.pop(captured.rollout.address)
            self._is_suspect_running = False
            self._numbers["cancelled" if live.is_cancelled else "finished"] += 1
        live.finish(captured)

    def _recover(self, error: Exception) -> None:
        """Fail the request that was running alone; run those that were together one at a time."""
        with self._changed:
            lost = list(self._running.values())
            self._running.clear()
            self._is_suspect_running = False
            if len(lost) > 1:
                self._suspects.extend(lost)
                return
            self._numbers["failed"] += len(lost)
        known = error if isinstance(error, AtlasError) else UnitError(f"the model failed: {error!r}.", code="failed")
        if not lost:
            # No request is at fault: the engine cannot run at all.
            self._close(known)
        for live in lost:
            live.fail(known)
