"""Requests in flight on an event loop in a thread of its own, so that this thread goes on while a server works."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Generic, Self, TypeVar

from .chat_client import ChatClient

T = TypeVar("T")


class RequestLoop(Generic[T]):
    """Runs requests to one server. A context manager; leaving it cancels those in flight.

    Args:
        client: Sends the requests.

    Attributes:
        in_flight: Number of requests whose results were not taken yet.
    """

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._results: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._tasks: set[Future[None]] = set()
        self.in_flight = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._client.__aenter__(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, request: Coroutine[Any, Any, T]) -> None:
        """Start a request without waiting for its result.

        Args:
            request: Awaits an answer of the client; must not raise.
        """
        self.in_flight += 1
        task = asyncio.run_coroutine_threadsafe(self._run(request), self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def results(self, *, wait: bool = True) -> list[T]:
        """Return the results that are there.

        Args:
            wait: Whether to wait until there is one.
        """
        found = [self._results.get()] if wait else []
        while not self._results.empty():
            found.append(self._results.get())
        self.in_flight -= len(found)
        return found

    async def _run(self, request: Coroutine[Any, Any, T]) -> None:
        self._results.put(await request)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.__aexit__()
