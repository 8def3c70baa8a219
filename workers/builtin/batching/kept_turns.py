"""Keys and values of conversations between two of their turns, so that a turn computes only what is new.

The prompt of a turn repeats all that was said before it. What the model computed then is copied out of the batch when a
response ends, and is the prefix of the next prompt of the same conversation, as far as the tokens of both are the same:
a template may write the last tokens otherwise once a message follows. Keys and values of a response come from decoding
and not from one pass over the prompt, so the next turn's vectors differ from those of such a pass by rounding; the
canary compares them with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....jobs.messages import ChatMessage
from ....jobs.work.addresses import RolloutAddress
from ....jobs.work.units import RolloutRequest
from ...chat.offsets import common_length
from ..passes.kv_cache import PrefixKV
from .prefixes import LEAST_TOKENS, SharedPrefix

_Key = tuple[RolloutAddress, tuple[ChatMessage, ...]]
"""The conversation, and its opening: a model that plays the user, too, has another one there."""


@dataclass(frozen=True, eq=False, slots=True)
class _KeptTurn:
    token_ids: Sequence[int]
    kept: PrefixKV


class KeptTurns:
    """The conversations of one model that may go on, each as of its last turn.

    Args:
        budget_tokens: Most tokens that are kept; the conversations that were kept first are forgotten first.

    Attributes:
        budget_tokens: The same.
        num_tokens: Tokens that are kept now.
    """

    def __init__(self, budget_tokens: int) -> None:
        self.budget_tokens = budget_tokens
        self.num_tokens = 0
        self._turns: OrderedDict[_Key, _KeptTurn] = OrderedDict()

    def may_keep(self, request: RolloutRequest, num_tokens: int) -> bool:
        """Return whether a conversation can be kept.

        One under an intervention is not: its responses were computed under the edits of responses, and would get those
        of prompts as part of the next prompt.

        Args:
            request: Request of the turn that has ended.
            num_tokens: Tokens of its prompt and its response.
        """
        is_turn = request.address.turn_index is not None
        return is_turn and request.intervention is None and num_tokens <= self.budget_tokens

    def keep(self, request: RolloutRequest, token_ids: Sequence[int], kept: PrefixKV) -> None:
        """Keep a conversation.

        Args:
            request: Request of the turn that has ended.
            token_ids: Tokens of its prompt and its response.
            kept: Their keys and values.
        """
        self._forget(_key(request))
        self._turns[_key(request)] = _KeptTurn(token_ids, kept)
        self.num_tokens += len(token_ids)
        while self.num_tokens > self.budget_tokens:
            self._forget(next(iter(self._turns)))

    def take(self, request: RolloutRequest, prompt_ids: Sequence[int], most: int) -> SharedPrefix | None:
        """Take out what is kept of a conversation; None where the prompt does not begin with it.

        Args:
            request: Request of the next turn.
            prompt_ids: Tokens of its prompt.
            most: Maximum length of the prefix in tokens; see ``PrefixCache.find``.
        """
        if request.address.turn_index is None or request.intervention is not None:
            return None
        turn = self._forget(_key(request))
        if turn is None:
            return None
        length = min(common_length(turn.token_ids, prompt_ids), most)
        return SharedPrefix(length, turn.kept.first(length)) if length >= LEAST_TOKENS else None

    def _forget(self, key: _Key) -> _KeptTurn | None:
        turn = self._turns.pop(key, None)
        if turn is not None:
            self.num_tokens -= len(turn.token_ids)
        return turn


def _key(request: RolloutRequest) -> _Key:
    return replace(request.address, turn_index=None), request.opening
