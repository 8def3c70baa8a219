"""Keys and values of conversations between two of their turns, so that a turn computes only what is new.

The prompt of a turn repeats all that was said before it. What the model computed then is copied out of the batch when a
response ends, and is the prefix of the next prompt of the same conversation, as far as the tokens of both are the same:
a template may write the last tokens otherwise once a message follows. Keys and values of a response come from decoding
and not from one pass over the prompt, so the next turn's vectors differ from those of such a pass by rounding; the
canary compares them with it.

Conversations take turns, so where there is not room for all, the one that was kept first is the one that goes on first.
Hence what is there stays, and what finds no room is not kept. Only what nobody has asked for in a long time gives way:
its conversation has ended before its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....jobs.messages import ChatMessage
from ....jobs.work.addresses import RolloutAddress
from ....jobs.work.units import RolloutRequest
from ...chat.offsets import common_length
from ..passes.kv_cache import PrefixKV
from .prefixes import LEAST_TOKENS, SharedPrefix

_LONG, _LEAST_LONG = 8, 16
"""Turns that end while a conversation waits, for each that is kept and at least, after which it has ended itself."""

_Key = tuple[RolloutAddress, tuple[ChatMessage, ...]]
"""The conversation, and its opening: a model that plays the user, too, has another one there."""


@dataclass(frozen=True, eq=False, slots=True)
class _KeptTurn:
    token_ids: Sequence[int]
    kept: PrefixKV
    number: int


class KeptTurns:
    """The conversations of one model that are to go on, each as of its last turn.

    Args:
        budget_tokens: Most tokens that are kept.

    Attributes:
        budget_tokens: The same.
        num_tokens: Tokens that are kept now.
    """

    def __init__(self, budget_tokens: int) -> None:
        self.budget_tokens = budget_tokens
        self.num_tokens = 0
        self._turns: dict[_Key, _KeptTurn] = {}
        self._num_ended = 0

    def has_room(self, request: RolloutRequest, num_tokens: int) -> bool:
        """Return whether a conversation can be kept; asked once for each turn that has ended.

        One under an intervention is not: its responses were computed under the edits of responses, and would get those
        of prompts as part of the next prompt.

        Args:
            request: Request of the turn that has ended.
            num_tokens: Tokens of its prompt and its response.
        """
        if not request.goes_on or request.intervention is not None or num_tokens > self.budget_tokens:
            return False
        self._num_ended += 1
        while self._turns and self.num_tokens + num_tokens > self.budget_tokens:
            oldest = next(iter(self._turns))
            if self._num_ended - self._turns[oldest].number <= max(_LEAST_LONG, _LONG * len(self._turns)):
                return False
            self._take(oldest)
        return True

    def keep(self, request: RolloutRequest, token_ids: Sequence[int], kept: PrefixKV) -> None:
        """Keep a conversation for which there is room.

        Args:
            request: Request of the turn that has ended.
            token_ids: Tokens of its prompt and its response.
            kept: Their keys and values.
        """
        self.forget(request)
        self._turns[_key(request)] = _KeptTurn(token_ids, kept, self._num_ended)
        self.num_tokens += len(token_ids)

    def take(self, request: RolloutRequest, prompt_ids: Sequence[int], most: int) -> SharedPrefix | None:
        """Take out what is kept of a conversation; None where the prompt does not begin with it.

        Args:
            request: Request of the next turn.
            prompt_ids: Tokens of its prompt.
            most: Maximum length of the prefix in tokens; see ``PrefixCache.find``.
        """
        turn = self._take(_key(request))
        if turn is None or request.intervention is not None:
            return None
        length = min(common_length(turn.token_ids, prompt_ids), most)
        return SharedPrefix(length, turn.kept.first(length)) if length >= LEAST_TOKENS else None

    def forget(self, request: RolloutRequest) -> None:
        """Forget the conversation of a request."""
        self._take(_key(request))

    def clear(self) -> bool:
        """Forget all conversations; return whether there were any."""
        was_any = bool(self._turns)
        self._turns.clear()
        self.num_tokens = 0
        return was_any

    def _take(self, key: _Key) -> _KeptTurn | None:
        turn = self._turns.pop(key, None)
        if turn is not None:
            self.num_tokens -= len(turn.token_ids)
        return turn


def _key(request: RolloutRequest) -> _Key:
    return replace(request.address, turn_index=None), request.opening
