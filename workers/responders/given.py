"""An engine whose responses are given: it renders conversations, has them read, and makes a rollout of every turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...jobs.errors import UnitError
from ...jobs.rollouts import Canary, Rollout
from ...jobs.sources.conversation import Conversation
from ...jobs.units import RolloutRequest
from ..chat.spans import ConversationRenderer
from ..chat.user_span import UserSpans
from ..engine import CapturedRollout, CapturedText, Engine, TokenisedText

_PASSES_AHEAD = 4
"""Passes' worth of tokens that are taken up together, so that texts which begin alike meet in one."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """A conversation to be read, and which of its turns are asked for."""

    requests: tuple[RolloutRequest, ...]
    text: TokenisedText


class GivenEngine:
    """Answers requests for turns of given conversations by one pass over each conversation.

    Args:
        reader: What captures.
        conversations: Of the same model.
        batch_tokens: Of the reader's passes.
        user_spans: Finds the user's words; None where no pooling is over them.
    """

    def __init__(
        self,
        reader: Engine,
        conversations: ConversationRenderer,
        batch_tokens: int,
        user_spans: UserSpans | None = None,
    ) -> None:
        self._reader = reader
        self._conversations = conversations
        self._user_spans = user_spans
        self._tokens = _PASSES_AHEAD * batch_tokens
        self._held: RolloutRequest | None = None
        self.layers = reader.layers
        self.canary_limit = reader.canary_limit

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Read texts; see ``Engine.capture``."""
        return self._reader.capture(texts)

    def canary(self, captured: CapturedRollout) -> Canary | None:
        """Recompute a rollout; see ``Engine.canary``."""
        return self._reader.canary(captured)

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Read and capture what is given; see ``Engine.generate``."""
        self._held = None
        while readings := self._take(next_request):
            for reading, captured in zip(
                readings, self._reader.capture([reading.text for reading in readings]), strict=True
            ):
                for position, request in enumerate(reading.requests):
                    rollout = _rollout(request, reading.text, position)
                    yield CapturedRollout(
                        rollout,
                        captured.vectors_LD[position],
                        captured.tokens_KTD[position],
                        reading.text.spans[position].user,
                        request.intervention,
                    )

    def _take(self, next_request: Callable[[], RolloutRequest | None]) -> list[_Reading]:
        """Take conversations until there are tokens enough; the turns of one stay together."""
        readings: list[_Reading] = []
        tokens = 0
        while tokens < self._tokens:
            first = self._held or next_request()
            self._held = None
            if first is None:
                break
            requests = [first]
            while (request := next_request()) is not None and _may_share_a_pass(first, request):
                requests.append(request)
            self._held = request
            reading = _Reading(tuple(requests), self._render(requests))
            readings.append(reading)
            tokens += len(reading.text.token_ids)
        return readings

    def _render(self, requests: Sequence[RolloutRequest]) -> TokenisedText:
        given = requests[0].given
        if given is None:
            raise UnitError(f"{requests[0].address} has no text to read.", code="rows_mixed")
        text = self._conversations.render(given)
        spans = dict(zip(given.turn_indices(), text.responses, strict=True))
        turns = [_turn(request) for request in requests]
        asked = tuple(spans[turn] for turn in turns)
        users = self._user_spans.of_turns(given, turns) if self._user_spans else ()
        return TokenisedText(text.name, text.token_ids, asked, users, requests[0].intervention)


def _may_share_a_pass(first: RolloutRequest, request: RolloutRequest) -> bool:
    """Whether two requests are turns of one reading: of the same conversation, with the same change of the model."""
    return request.given is first.given and request.intervention == first.intervention


def _turn(request: RolloutRequest) -> int:
    assert request.address.turn_index is not None
    return request.address.turn_index


def _rollout(request: RolloutRequest, text: TokenisedText, position: int) -> Rollout:
    given: Conversation | None = request.given
    assert given is not None
    start, stop = text.responses[position]
    return Rollout(
        address=request.address,
        system_prompt=request.system_prompt,
        question=request.question,
        response=given.messages[_turn(request)].content,
        prompt_token_ids=text.token_ids[:start],
        response_token_ids=text.token_ids[start:stop],
        num_content_tokens=stop - start,
        finish_reason="given",
        seed=request.seed,
        conversation_index=given.conversation_index,
        extra=given.extra_of(_turn(request)),
    )
