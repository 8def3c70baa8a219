"""The requests of one judging: which is next, and what becomes of each answer. A state machine without clock and I/O.

Units come in one after another, so that few of them are open at a time and each is written as soon as all its rollouts
have an outcome. A rollout whose reply cannot be read is asked about again before new ones are, and so is one whose
request failed. If it fails as often as it may be asked about, it is set aside: it has no outcome, and the next call
judges it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .answers import Answer
from .costs import Spending
from .outcomes import Outcome
from .requests import ASKS, Judged, JudgeRequest

MOST_FAILURES = 8
"""Requests that may fail one after another, each after the retries of its client, before judging ends."""


@dataclass(frozen=True, slots=True)
class UnitToJudge:
    """The rollouts of a unit that have no outcome yet.

    Attributes:
        unit_id: Id of the unit.
        rollouts: The rollouts, at least one.
    """

    unit_id: str
    rollouts: tuple[Judged, ...]


@dataclass
class _OpenUnit:
    num_rollouts: int
    outcomes: list[Outcome] = field(default_factory=list)
    num_failed: int = 0

    @property
    def is_over(self) -> bool:
        return len(self.outcomes) + self.num_failed == self.num_rollouts


class JudgingQueue:
    """Hands out requests and collects outcomes.

    Args:
        units: The units to judge, read as they are needed.
        spending: Counts tokens, and has the spend limit.

    Attributes:
        num_scored: Number of rollouts that got a score.
        unscored: Number of rollouts that got none, by reason.
        failures: Why the requests failed whose rollouts were set aside, in order.
        last_failure: Why the last request failed that did; empty where none did.
        is_out_of_money: Whether the spend limit kept a request back.
    """

    def __init__(self, units: Iterator[UnitToJudge], spending: Spending) -> None:
        self._units = units
        self._spending = spending
        self._waiting: deque[JudgeRequest] = deque()
        self._open: dict[str, _OpenUnit] = {}
        self._failures_in_a_row = 0
        self.num_scored = 0
        self.unscored: dict[str, int] = {}
        self.failures: list[str] = []
        self.last_failure = ""
        self.is_out_of_money = False

    @property
    def num_judged(self) -> int:
        """Number of rollouts with an outcome."""
        return self.num_scored + sum(self.unscored.values())

    @property
    def is_failing(self) -> bool:
        """Whether so many requests failed one after another that the judge is taken to be gone."""
        return self._failures_in_a_row >= MOST_FAILURES

    def next_request(self) -> JudgeRequest | None:
        """Return the next request; None when there is none now, at the spend limit, or when the judge is failing.

        Near the limit there is none until requests in flight are answered, since they may cost less than they might.
        """
        if self.is_out_of_money or self.is_failing:
            return None
        request = self._first_waiting()
        if request is None:
            return None
        if not self._spending.may_ask(request.judged.row, request.ask, request.judged.num_tokens):
            # What is in flight counts at its most: when it is answered, there may be room again.
            self.is_out_of_money = not self._spending.is_waiting
            return None
        return self._waiting.popleft()

    def may_begin(self) -> bool:
        """Whether the spend limit has room for the first request; asked before the trouble of opening a judge."""
        request = self._first_waiting()
        self.is_out_of_money = request is not None and not self._spending.has_room(request.judged.num_tokens)
        return not self.is_out_of_money

    def take(self, answer: Answer) -> tuple[str, list[Outcome]] | None:
        """Take the answer to a request.

        Returns:
            Id and outcomes of its unit, if no rollout of the unit waits any more; None otherwise, or if it has none.
        """
        self._spending.count(answer)
        judged = answer.request.judged
        unit = self._open[judged.unit_id]
        if answer.failure:
            self._failures_in_a_row += 1
            self.last_failure = answer.failure
            if answer.request.ask < ASKS:
                self._waiting.appendleft(replace(answer.request, ask=answer.request.ask + 1))
                return None
            unit.num_failed += 1
            self.failures.append(answer.failure)
        else:
            self._failures_in_a_row = 0
            outcome = self._outcome(answer)
            if outcome is None:
                asked = answer.request
                self._waiting.appendleft(replace(asked, ask=asked.ask + 1, unread=asked.unread + 1))
                return None
            self._count(outcome)
            unit.outcomes.append(outcome)
        if not unit.is_over:
            return None
        del self._open[judged.unit_id]
        return (judged.unit_id, unit.outcomes) if unit.outcomes else None

    def unfinished(self) -> Iterator[tuple[str, list[Outcome]]]:
        """Yield the outcomes of units that have some but not all, and forget them: for a judging that ends early."""
        for unit_id, unit in self._open.items():
            if unit.outcomes:
                yield unit_id, unit.outcomes
        self._open = {}

    def _first_waiting(self) -> JudgeRequest | None:
        """Return the request that is next, and leave it there; None when there is no more."""
        while not self._waiting:
            unit = next(self._units, None)
            if unit is None:
                return None
            self._open[unit.unit_id] = _OpenUnit(len(unit.rollouts))
            self._waiting.extend(JudgeRequest(judged) for judged in unit.rollouts)
        return self._waiting[0]

    def _outcome(self, answer: Answer) -> Outcome | None:
        """Return what an answer means for its rollout; None: it is to be asked again."""
        row, ask = answer.request.judged.row, answer.request.ask
        if answer.refused is not None:
            return Outcome(row, None, answer.refused, answer.detail, answer.reply, ask)
        reading = answer.request.judged.form.read(answer.reply or "", answer.is_cut)
        if reading.score is not None:
            return Outcome(row, reading.score, None, "", answer.reply, ask)
        if reading.is_refusal:
            return Outcome(row, None, "refusal", "", answer.reply, ask)
        return Outcome(row, None, "unreadable", reading.problem, answer.reply, ask) if ask >= ASKS else None

    def _count(self, outcome: Outcome) -> None:
        if outcome.reason is None:
            self.num_scored += 1
        else:
            self.unscored[outcome.reason] = self.unscored.get(outcome.reason, 0) + 1
