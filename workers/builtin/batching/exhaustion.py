"""Go on with a smaller batch when the device has run out of memory. Knows no model and no passes.

The rollouts that were in the batch are lost and begin anew, from the same seeds. Whoever asked for them is not told,
except that it takes longer.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import torch

from ....jobs.machine_faults import is_out_of_memory
from ....jobs.work.addresses import RolloutAddress
from ...engine import CapturedRollout, StreamedRequest

LEAST_TOKENS = 256
"""Tokens of a batch below which there is no sense in a smaller one."""

_log = logging.getLogger(__name__)

NextRequest = Callable[[], StreamedRequest | None]


class Batch(Protocol):
    """A running batch."""

    @property
    def tokens_in_use(self) -> int:
        """Tokens that it has memory for now."""
        ...

    def stream(self, next_request: NextRequest) -> Iterator[CapturedRollout]:
        """Generate; see ``StreamingResponder.stream``."""
        ...


def stream_in_memory(
    start: Callable[[int], Batch],
    batch_tokens: int,
    next_request: NextRequest,
    on_smaller: Callable[[int], None],
    forget: Callable[[], bool] = lambda: False,
) -> Iterator[CapturedRollout]:
    """Generate, with ever smaller batches as long as the memory is exhausted.

    Args:
        start: Starts a batch of at most a number of tokens.
        batch_tokens: Tokens of the first batch.
        next_request: See ``StreamingResponder.stream``.
        on_smaller: Called with the tokens of a batch when it becomes smaller.
        forget: Frees what is only kept to save time, and returns whether there was any.

    Yields:
        The captured rollout of each request.

    Raises:
        RuntimeError: One rollout alone needs more memory than there is.
    """
    flying: dict[RolloutAddress, StreamedRequest] = {}
    again: deque[StreamedRequest] = deque()

    def following() -> StreamedRequest | None:
        asked = again.popleft() if again else _counted(next_request())
        if asked is not None:
            flying[asked.request.address] = asked
        return asked

    while True:
        batch = start(batch_tokens)
        try:
            for row in batch.stream(following):
                flying.pop(row.rollout.address, None)
                yield row
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if forget():
                # The rest of the memory was enough for the rollouts, be it for one alone.
                batch_tokens = max(LEAST_TOKENS, batch_tokens // 2)
            else:
                batch_tokens = min(batch_tokens, batch.tokens_in_use) // 2
                if len(flying) < 2 or batch_tokens < LEAST_TOKENS:
                    raise
        # Not before the handler has ended, because until then the error holds the tensors of the pass.
        del batch
        again.extend(map(_resumed, flying.values()))
        flying.clear()
        free_memory()
        _log.warning("the memory was exhausted: going on with batches of at most %d tokens", batch_tokens)
        on_smaller(batch_tokens)


def free_memory() -> None:
    """Return to the device what an error has left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _CountedTokens:
    """Reports the tokens of a rollout once each, also where the rollout begins anew."""

    def __init__(self, on_token: Callable[[int], bool]) -> None:
        self._on_token = on_token
        self._told = self._seen = 0
        self._is_ended = False

    def __call__(self, token: int) -> bool:
        self._seen += 1
        if self._seen <= self._told:
            # The response ends again with the token with which it ended: it was lost in the pass after that.
            return self._is_ended and self._seen == self._told
        self._told = self._seen
        self._is_ended = self._on_token(token)
        return self._is_ended

    def begin_anew(self) -> None:
        self._seen = 0


def _counted(asked: StreamedRequest | None) -> StreamedRequest | None:
    if asked is None or asked.on_token is None:
        return asked
    return replace(asked, on_token=_CountedTokens(asked.on_token))


def _resumed(asked: StreamedRequest) -> StreamedRequest:
    if isinstance(asked.on_token, _CountedTokens):
        asked.on_token.begin_anew()
    return asked
