"""A judge that an engine of this project runs: each request is a chat of one message, answered greedily.

The response is one of those that the rubric asks for, by guided decoding, so that small models judge too: what they
would write otherwise is seldom a number. What the engine captures on the way is dropped. Knows no engine but by its
protocol.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from ...jobs.errors import UnitError
from ...jobs.judging.answers import Answer
from ...jobs.judging.requests import JudgeRequest
from ...jobs.messages import ChatMessage
from ...jobs.work.addresses import RolloutAddress
from ...jobs.work.units import RolloutRequest
from ..engine import CapturedRollout, Responder


class EngineJudge:
    """Asks a model that an engine has loaded.

    Args:
        responder: The engine. Its sampling should be greedy, and its responses as long as a reply may be.
    """

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._numbers = itertools.count()

    def answers(self, next_request: Callable[[], JudgeRequest | None]) -> Iterator[Answer]:
        """Answer requests in the engine's running batch; see ``Judge.answers``."""
        while True:
            in_flight: dict[RolloutAddress, JudgeRequest] = {}

            def pull(asked: dict[RolloutAddress, JudgeRequest] = in_flight) -> RolloutRequest | None:
                request = next_request()
                return None if request is None else self._as_rollout(request, asked)

            try:
                for captured in self._responder.generate(pull):
                    yield _answer(in_flight.pop(captured.rollout.address), captured)
            except UnitError as error:
                # Which request is at fault is not told, and all in flight are lost: each is tried alone.
                if not in_flight:
                    raise
                fault = error
            else:
                return
            for request in list(in_flight.values()):
                yield self._alone(request) if len(in_flight) > 1 else _failed(request, fault)

    def close(self) -> None:
        """End the processes of the engine."""
        self._responder.reader.close()

    def _as_rollout(self, request: JudgeRequest, in_flight: dict[RolloutAddress, JudgeRequest]) -> RolloutRequest:
        address = RolloutAddress("conversation", "judge", "pos", 0, next(self._numbers), 0)
        in_flight[address] = request
        choices = request.judged.form.choices
        return RolloutRequest(address, (ChatMessage("user", request.prompt),), seed=0, choices=choices)

    def _alone(self, request: JudgeRequest) -> Answer:
        waiting = iter([self._as_rollout(request, {})])
        try:
            (captured,) = self._responder.generate(lambda: next(waiting, None))
        except UnitError as error:
            return _failed(request, error)
        return _answer(request, captured)


def _answer(request: JudgeRequest, captured: CapturedRollout) -> Answer:
    rollout = captured.rollout
    return Answer(
        request,
        reply=rollout.response,
        is_cut=rollout.finish_reason == "length",
        num_prompt_tokens=len(rollout.prompt_token_ids),
        num_reply_tokens=len(rollout.response_token_ids),
    )


def _failed(request: JudgeRequest, error: UnitError) -> Answer:
    if error.is_permanent:
        return Answer(request, refused="request_refused", detail=error.message)
    return Answer(request, failure=error.message)
