"""A responder for given conversations: it renders them, captures them, and makes a rollout of each assistant turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...jobs.errors import UnitError
from ...jobs.poolings import TokenRange
from ...jobs.work.canary_rows import canary_draw
from ...jobs.work.rollouts import Rollout
from ...jobs.work.units import RolloutRequest
from ..chat.spans import ConversationRenderer
from ..chat.survey import is_other_text
from ..chat.user_span import UserSpans
from ..engine import CapturedRollout, Reader, TokenisedText
from .readings import Reading, read


class GivenResponder:
    """Captures all requested turns of a given conversation in one pass over it.

    Args:
        reader: The model that captures.
        conversations: Renders conversations for that model.
        user_spans: Locates user messages; None where no pooling needs them.

    Attributes:
        prefetch: 1, because many conversations are taken at once and none while they are read.
    """

    def __init__(
        self, reader: Reader, conversations: ConversationRenderer, user_spans: UserSpans | None = None
    ) -> None:
        self.reader = reader
        self.prefetch = 1
        self._conversations = conversations
        self._user_spans = user_spans
        self._held: RolloutRequest | None = None

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Capture the given responses; see ``Responder.generate``."""
        self._held = None
        while readings := self._take(next_request):
            yield from read(self.reader, readings)

    def _take(self, next_request: Callable[[], RolloutRequest | None]) -> list[Reading]:
        """Take conversations until they have enough tokens for one call; the turns of one stay together."""
        readings: list[Reading] = []
        tokens = 0
        while tokens < self.reader.tokens_per_capture:
            first = self._held or next_request()
            self._held = None
            if first is None:
                break
            requests = [first]
            while (request := next_request()) is not None and _may_share_a_pass(first, request):
                requests.append(request)
            self._held = request
            reading = self._reading(requests)
            readings.append(reading)
            tokens += len(reading.text.token_ids)
        return readings

    def _reading(self, requests: Sequence[RolloutRequest]) -> Reading:
        """Render a conversation and make a rollout of each requested turn."""
        given = requests[0].given
        if given is None:
            raise UnitError(f"{requests[0].address} has no text to read.", code="rows_mixed")
        rendered = self._conversations.read(given.conversation)
        text = rendered.text
        indices = list(given.conversation.turn_indices())
        spans = dict(zip(indices, text.responses, strict=True))
        contents = dict(zip(indices, rendered.contents, strict=True))
        turns = [request.given.turn_index for request in requests if request.given is not None]
        requested = tuple(spans[turn] for turn in turns)
        users = self._user_spans.of_turns(given.conversation, turns) if self._user_spans else ()
        rollouts = tuple(
            _rollout(request, text, spans[turn], contents[turn]) for request, turn in zip(requests, turns, strict=True)
        )
        draws = tuple(canary_draw(rollout.address, rollout.seed) for rollout in rollouts)
        intervention = requests[0].intervention
        return Reading(TokenisedText(text.name, text.token_ids, requested, users, intervention, draws), rollouts)


def _may_share_a_pass(first: RolloutRequest, request: RolloutRequest) -> bool:
    """Whether two requests can be captured in one pass: same conversation, same intervention."""
    return _conversation(request) is _conversation(first) and request.intervention == first.intervention


def _conversation(request: RolloutRequest) -> object:
    return request.given and request.given.conversation


def _rollout(request: RolloutRequest, text: TokenisedText, span: TokenRange, content: str) -> Rollout:
    given = request.given
    assert given is not None
    start, stop = span
    return Rollout(
        address=request.address,
        system_prompt=request.system_prompt,
        question=request.question,
        # A template may drop a part of it, reasoning for instance; the row's text is the one that its numbers are of.
        response=content if is_other_text(given.text, content) else given.text,
        prompt_token_ids=text.token_ids[:start],
        response_token_ids=text.token_ids[start:stop],
        num_content_tokens=stop - start,
        finish_reason="given",
        seed=request.seed,
        conversation_index=given.conversation.conversation_index,
        extra=given.extra,
    )
