"""The queue of a judging: every rollout has one outcome or is set aside, whatever is answered and in which order."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.judging.answers import Answer
from persona_atlas.jobs.judging.costs import Prices, Spending, estimate_cost
from persona_atlas.jobs.judging.forms import SCORE_FORMS
from persona_atlas.jobs.judging.outcomes import Outcome
from persona_atlas.jobs.judging.queue import MOST_FAILURES, JudgingQueue, UnitToJudge
from persona_atlas.jobs.judging.requests import ASKS, Judged, JudgeRequest, filled_in

Replies = Callable[[JudgeRequest], Answer]


def units(sizes: list[int], num_tokens: int = 10) -> list[UnitToJudge]:
    rows = iter(range(sum(sizes)))
    return [
        UnitToJudge(
            f"u{n}",
            tuple(Judged(next(rows), f"u{n}", SCORE_FORMS["role"], "Rate it.", num_tokens) for _ in range(size)),
        )
        for n, size in enumerate(sizes)
    ]


def run(
    queue: JudgingQueue, answer: Replies, concurrency: int = 4, seed: int = 0
) -> tuple[dict[str, list[Outcome]], list[JudgeRequest]]:
    """Answer every request, in any order, as a judge would; return outcomes by unit and all requests."""
    order = random.Random(seed)
    done: dict[str, list[Outcome]] = {}
    in_flight: list[JudgeRequest] = []
    asked: list[JudgeRequest] = []
    while True:
        while len(in_flight) < concurrency and (request := queue.next_request()) is not None:
            in_flight.append(request)
            asked.append(request)
        if not in_flight:
            return done, asked
        finished = queue.take(answer(in_flight.pop(order.randrange(len(in_flight)))))
        if finished is not None:
            assert finished[0] not in done
            done[finished[0]] = finished[1]


def test_a_unit_is_finished_once_all_its_rollouts_have_an_outcome():
    queue = JudgingQueue(iter(units([2, 3])), Spending())
    done, asked = run(queue, lambda request: Answer(request, reply="3"))
    assert {unit: sorted(one.row for one in outcomes) for unit, outcomes in done.items()} == {
        "u0": [0, 1],
        "u1": [2, 3, 4],
    }
    assert (queue.num_scored, len(asked)) == (5, 5)


kinds_of_answer = st.sampled_from(["3", "2", "no idea", "1 or 2", "", "fail", "filter"])


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    said=st.lists(st.lists(kinds_of_answer, min_size=ASKS, max_size=ASKS), min_size=20, max_size=20),
    concurrency=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_every_rollout_has_one_outcome_by_its_own_replies(
    sizes: list[int], said: list[list[str]], concurrency: int, seed: int
):
    def answer(request: JudgeRequest) -> Answer:
        text = said[request.judged.row][request.ask - 1]
        if text == "fail":
            return Answer(request, failure="it is away.")
        if text == "filter":
            return Answer(request, refused="content_filter", detail="filtered")
        return Answer(request, reply=text)

    def expected(row: int) -> tuple[float | None, str | None, int] | None:
        """Score, reason and number of asks; None for a rollout that is set aside."""
        for ask, text in enumerate(said[row], start=1):
            if text in ("3", "2"):
                return float(text), None, ask
            if text == "filter":
                return None, "content_filter", ask
        return None if said[row][-1] == "fail" else (None, "unreadable", ASKS)

    queue = JudgingQueue(iter(units(sizes)), Spending())
    done, asked = run(queue, answer, concurrency, seed)
    outcomes = [one for of_unit in [*done.values(), *dict(queue.unfinished()).values()] for one in of_unit]
    found = {one.row: (one.score, one.reason, one.asks) for one in outcomes}
    assert len(found) == len(outcomes), "a rollout has two outcomes"
    wanted = {row: expected(row) for row in range(sum(sizes))}
    if queue.is_failing:
        assert found.items() <= wanted.items()
        return
    assert found == {row: outcome for row, outcome in wanted.items() if outcome is not None}
    assert len(queue.failures) == sum(outcome is None for outcome in wanted.values())
    assert len({(one.judged.row, one.ask) for one in asked}) == len(asked), "a request was made twice"


def test_a_reply_that_cannot_be_read_is_asked_for_again_with_a_reminder_and_kept_with_its_text():
    queue = JudgingQueue(iter(units([1])), Spending())
    done, asked = run(queue, lambda request: Answer(request, reply=f"no. {request.ask} of a list"))
    assert [one.prompt == "Rate it." for one in asked] == [True, False, False]
    assert len({one.prompt for one in asked}) == ASKS, "the same prompt would be answered in the same way"
    (outcome,) = done["u0"]
    assert (outcome.score, outcome.reason, outcome.reply) == (None, "unreadable", f"no. {ASKS} of a list")
    assert outcome.detail


def test_a_request_that_failed_is_made_again_as_it_was():
    queue = JudgingQueue(iter(units([1])), Spending())
    done, asked = run(queue, lambda request: Answer(request, reply="3") if request.ask == 2 else _failed(request))
    assert [one.prompt for one in asked] == ["Rate it."] * 2
    assert done["u0"][0].score == 3


def _failed(request: JudgeRequest) -> Answer:
    return Answer(request, failure="it is away.")


def test_a_judge_that_is_gone_is_not_asked_for_ever():
    queue = JudgingQueue(iter(units([1000])), Spending())
    _, asked = run(queue, _failed, concurrency=1)
    assert queue.is_failing
    assert len(asked) == MOST_FAILURES
    assert queue.last_failure == "it is away."


@given(max_usd=st.floats(0, 0.01), concurrency=st.integers(1, 8), reply_tokens=st.integers(0, 4))
def test_the_spend_limit_is_never_exceeded_and_what_is_done_is_kept(
    max_usd: float, concurrency: int, reply_tokens: int
):
    spending = Spending(Prices(10, 20), max_usd, max_reply_tokens=4)
    queue = JudgingQueue(iter(units([3] * 10)), spending)
    done, _ = run(
        queue,
        lambda request: Answer(request, reply="3", num_prompt_tokens=10, num_reply_tokens=reply_tokens),
        concurrency,
    )
    kept = sum(map(len, done.values())) + sum(len(outcomes) for _, outcomes in queue.unfinished())
    assert kept == queue.num_judged
    assert spending.usd is not None
    assert spending.usd <= max_usd
    assert queue.is_out_of_money == (queue.num_judged < 30)
    # Not stopped too early: one more request would have been too much, with those in flight at that time.
    if queue.is_out_of_money:
        assert spending.usd + concurrency * (10 * 10 + 4 * 20) / 1e6 > max_usd


def test_near_the_limit_answers_are_waited_for_before_it_ends():
    # Requests that may cost 1000 tokens each, and cost 10: far more of them fit the limit than at a time.
    spending = Spending(Prices(0, 1e6), 2000, max_reply_tokens=1000)
    queue = JudgingQueue(iter(units([30])), spending)
    run(queue, lambda request: Answer(request, reply="3", num_reply_tokens=10), concurrency=8)
    assert (queue.num_scored, queue.is_out_of_money) == (30, False)


def test_a_limit_needs_prices():
    with pytest.raises(InputError) as caught:
        Spending(None, 5.0)
    assert (caught.value.code, caught.value.field) == ("no_prices", "--max-spend")


def test_tokens_that_the_judge_does_not_count_are_estimated():
    spending = Spending(Prices(1, 1))
    run(JudgingQueue(iter(units([2], num_tokens=100)), spending), lambda request: Answer(request, reply="3"))
    assert spending.prompt_tokens == 200
    assert spending.reply_tokens > 0


def test_time_is_that_of_the_slower_limit():
    assert estimate_cost(0, 1000, None, 10, None).seconds == 100
    assert estimate_cost(0, 1000, None, 10, 2.0).seconds == 500
    assert estimate_cost(0, 1000, None, 0, None).seconds is None
    assert estimate_cost(0, 33, None, 32, None).seconds == 2
    assert estimate_cost(0, 3, None, 32, None).seconds == 1
    assert estimate_cost(0, 0, None, 32, None).seconds == 0


@given(question=st.text(max_size=20), answer=st.text(max_size=20))
def test_question_and_answer_are_filled_in_as_they_are(question: str, answer: str):
    assert filled_in("{question}|{answer}|{other}", question, answer) == f"{question}|{answer}|{{other}}"
