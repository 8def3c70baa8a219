"""A judge that an engine runs: requests share its batch, and one that it cannot answer costs no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from persona_atlas.jobs.errors import EngineDied, UnitError
from persona_atlas.jobs.judging.forms import SCORE_FORMS
from persona_atlas.jobs.judging.requests import Judged, JudgeRequest
from persona_atlas.jobs.work.rollouts import Rollout
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.engine import CapturedRollout, Responder
from persona_atlas.workers.judging.engine_judge import EngineJudge


@dataclass
class Scripted:
    """An engine that answers with the prompt's last word, three at a time, and fails with what is asked to fail."""

    codes: dict[str, str] = field(default_factory=dict)
    num_streams: int = 0

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        self.num_streams += 1
        while batch := [request for request in (next_request() for _ in range(3)) if request is not None]:
            for request in batch:
                for text, code in self.codes.items():
                    if text in request.question:
                        if code == "engine_died":
                            raise EngineDied("it ended.", code=code)
                        raise UnitError(f"{text} cannot be run.", code=code)
            for request in reversed(batch):
                yield CapturedRollout(self._rollout(request), {})

    def _rollout(self, request: RolloutRequest) -> Rollout:
        (message,) = request.messages
        word = message.content.split()[-1]
        return Rollout(request.address, "", message.content, word, (1, 2), (3,), 1, "stop", request.seed)


def ask(engine: Scripted, count: int) -> dict[int, Any]:
    judge = EngineJudge(cast("Responder", engine))
    to_do = iter(JudgeRequest(Judged(row, "u", SCORE_FORMS["role"], f"rate {row}")) for row in range(count))
    return {answer.request.judged.row: answer for answer in judge.answers(lambda: next(to_do, None))}


def test_replies_reach_their_requests():
    found = ask(Scripted(), 10)
    assert {row: answer.reply for row, answer in found.items()} == {row: str(row) for row in range(10)}
    assert (found[0].num_prompt_tokens, found[0].num_reply_tokens) == (2, 1)


def test_a_request_that_cannot_be_run_is_refused_and_the_others_are_answered():
    found = ask(Scripted({"rate 4": "too_long"}), 10)
    assert found[4].refused == "request_refused"
    assert "rate 4 cannot be run" in found[4].detail
    assert {answer.reply for row, answer in found.items() if row != 4} == {str(row) for row in range(10) if row != 4}


def test_a_fault_that_may_pass_is_a_failure():
    assert ask(Scripted({"rate 0": "out_of_memory"}), 1)[0].failure == "rate 0 cannot be run."


def test_an_engine_that_ended_answers_nothing_more():
    with pytest.raises(EngineDied):
        ask(Scripted({"rate 1": "engine_died"}), 3)
