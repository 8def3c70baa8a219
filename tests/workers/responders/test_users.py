"""A user whose engine is of its own: whoever waits for a message gets one, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from persona_atlas.jobs.dialogues.simulated_user import UserTurn
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.engine import CapturedRollout
from persona_atlas.workers.responders.users import OwnEngineUser

from fakes import FakeEngine


class Forgetful(FakeEngine):
    """Takes every request and answers none."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        return iter(list(iter(next_request, None))[:0])  # pyright: ignore[reportReturnType]


class Broken(FakeEngine):
    """Fails with a request in hand."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        next_request()
        raise RuntimeError("out of memory")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("engine", "error"), [(Forgetful(), UnitError), (Broken(), RuntimeError)])
def test_an_engine_that_does_not_answer_leaves_nobody_waiting(engine: FakeEngine, error: type[Exception]):
    user = OwnEngineUser(FakeEngine(), engine)
    address = RolloutAddress("conversation", "sea", "pos", 0, 0, 0, 1)
    turn = UserTurn((ChatMessage("user", "Write."),), 7)
    for _ in range(2):
        user.ask(RolloutRequest(address, (), 5, conversation_index=0, user=turn))
        (said,) = user.answers(wait=True)
        assert isinstance(said.error, error)
    assert user.num_asked == 0
