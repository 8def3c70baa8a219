"""Conversations whose every turn is generated: the user's messages are scripted, a request holds the replies so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.rollouts import Rollout
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt, WorkUnit

from requests_of import chat


@dataclass(frozen=True)
class Dialogues:
    """The requests of a unit of such conversations.

    Attributes:
        scripts: What the user says in each conversation, turn by turn.
        system_prompt: Of all of them; ``""`` for none.
        end_after: Turns after which a conversation ends before its time; None for never.
    """

    scripts: tuple[tuple[str, ...], ...]
    system_prompt: str = "You are a pirate."
    end_after: int | None = None

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        for address in unit.addresses():
            if address.turn_index == 1:
                opening = chat(self.system_prompt, self.scripts[address.question_index][0])
                yield RolloutRequest(
                    address, opening, address.seed(0), goes_on=len(self.scripts[address.question_index]) > 1
                )

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        assert (request.address, request.question) == (rollout.address, rollout.question)
        turn = request.address.turn_index
        assert turn is not None
        number = (turn + 1) // 2
        script = self.scripts[request.address.question_index]
        if number >= len(script) or number == self.end_after:
            return None
        address = replace(request.address, turn_index=turn + 2)
        reply = ChatMessage("assistant", rollout.response)
        messages = (*request.messages, reply, ChatMessage("user", script[number]))
        return RolloutRequest(address, messages, address.seed(0), goes_on=number + 1 < len(script))


def dialogue_attempt(
    persona: str, scripts: Sequence[Sequence[str]], row_block: int = 0, end_after: int | None = None
) -> UnitAttempt:
    """An attempt at a unit of conversations, a row for each turn."""
    rows = [(number, 2 * place + 1) for number, script in enumerate(scripts) for place in range(len(script))]
    numbers, turns = (tuple(column) for column in zip(*rows, strict=True))
    unit = WorkUnit(f"role.{persona}.pos.p0.b0", "role", persona, "pos", 0, numbers, (0,) * len(rows), turns, numbers)
    requests = Dialogues(tuple(tuple(script) for script in scripts), end_after=end_after)
    return UnitAttempt(unit, requests, 1, row_block)


def place_of(address: RolloutAddress) -> tuple[str, int, int | None]:
    """Whose conversation it is of, which, and which turn."""
    return address.persona, address.question_index, address.turn_index
