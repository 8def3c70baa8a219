"""Judge a run: check the judge, ask about every rollout that has no outcome, and write unit after unit.

A unit's scores are written as soon as all its rollouts have an outcome. When judging ends early (spend limit, Ctrl-C, a
server that is gone), the outcomes of units that were begun are written too, and the next call does the rest.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import Any

from ...jobs.errors import InputError
from ...jobs.judging.costs import CostEstimate, Prices, Spending, estimate_cost
from ...jobs.judging.outcomes import Outcome
from ...jobs.judging.queue import JudgingQueue
from ...jobs.specs.spec_parts import GenerationSpec
from ...jobs.version import __version__
from ...jobs.wording import count_of
from ...storage.derived.scores import judges, read_judge_record, write_judge_record, write_outcomes
from ...storage.format.judge_record import JudgeRecord
from ...storage.locations.location import Location
from ...storage.run.commits import now_iso
from ...workers.judging.judge import Judge
from ..run.progress import Progress, span
from .judge_model import load_judge
from .to_judge import ToJudge

_LINE_EVERY_S = 10.0
_VERSIONED = {"endpoint": ("openai",), "engine": ("torch", "transformers")}


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Who judges, and within which limits.

    Attributes:
        name: Name of the judge, under which its scores are kept.
        model: Name of the model on the server, or its source.
        server: The server; None for a model that this process runs.
        max_tokens: Most tokens of a reply.
        requests_per_s: Limit on requests per second; None for none.
        prices: Prices of the judge; None where they are not known.
        max_usd: Spend limit in US dollars; None for none.
    """

    name: str
    model: str
    server: GenerationSpec | None
    max_tokens: int
    requests_per_s: float | None = None
    prices: Prices | None = None
    max_usd: float | None = None

    def estimate(self, prompt_tokens: int, num_left: int) -> CostEstimate:
        """Estimate what judging takes.

        Args:
            prompt_tokens: Estimated tokens of all requests.
            num_left: Number of rollouts to judge.
        """
        concurrency = self.server.concurrency if self.server else 0
        return estimate_cost(prompt_tokens, num_left, self.prices, concurrency, self.requests_per_s)

    def record(self, rubrics: Mapping[str, str]) -> JudgeRecord:
        """Make the record of this judge.

        Args:
            rubrics: Digest of each rubric that it judges by, by its name.
        """
        source = "endpoint" if self.server else "engine"
        return JudgeRecord(
            name=self.name,
            source=source,
            model=self.model,
            endpoint=self.server.endpoint if self.server else None,
            rubrics=dict(rubrics),
            max_tokens=self.max_tokens,
            versions=_versions(_VERSIONED[source]),
            created_at=now_iso(),
        )


@dataclass(frozen=True, slots=True)
class Judging:
    """How a call ended.

    Attributes:
        rollouts: Number of rollouts that the judge should have an outcome of.
        judged_before: Number that had one before this call.
        scored: Number that got a score in this call.
        unscored: Number that got none in this call, by reason.
        failed: Number of rollouts whose requests failed, by what went wrong; they have no outcome.
        stopped: Why it ended early: ``spend_limit`` or ``judge_failed``; None where it did not.
        last_failure: Why the last request failed that did; empty where none did.
        prompt_tokens: Tokens of the requests.
        reply_tokens: Tokens of the replies.
        usd: What was spent, in US dollars; None without prices.
    """

    rollouts: int
    judged_before: int
    scored: int
    unscored: dict[str, int]
    failed: dict[str, int]
    stopped: str | None
    last_failure: str
    prompt_tokens: int
    reply_tokens: int
    usd: float | None

    @property
    def left(self) -> int:
        """Number of rollouts without an outcome."""
        return self.rollouts - self.judged_before - self.scored - sum(self.unscored.values())

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return {
            "rollouts": self.rollouts,
            "judged_before": self.judged_before,
            "scored": self.scored,
            "unscored": self.unscored,
            "failed": [{"error": error, "rollouts": count} for error, count in self.failed.items()],
            "left": self.left,
            "stopped": self.stopped,
            "tokens_in": self.prompt_tokens,
            "tokens_out": self.reply_tokens,
            "usd": self.usd,
        }


def judge_run(to_judge: ToJudge, settings: JudgeSettings, progress: Progress) -> Judging:
    """Judge what is left of a run.

    Args:
        to_judge: What is left.
        settings: The judge and its limits.
        progress: Shows how far it is.

    Returns:
        How it ended. Check ``left``: rollouts whose requests failed, or that the limit kept back, raise no error.

    Raises:
        InputError: The judge is wrong (no such model, a key), or the name belongs to another judge; nothing is changed.
        StoreError: Texts or scores in the store are damaged.
        KeyboardInterrupt: It was stopped; what was judged is kept.
    """
    location = to_judge.run.location
    spending = Spending(settings.prices, settings.max_usd, settings.max_tokens)
    record = settings.record(to_judge.rubrics)
    record_to_write(location, record)
    queue = JudgingQueue(to_judge.units(), spending)

    def write(unit_id: str, outcomes: list[Outcome]) -> None:
        write_outcomes(location, settings.name, unit_id, outcomes, to_judge.unit_rows[unit_id])

    if to_judge.num_left and queue.may_begin():
        with saying_what_is_kept(queue, progress), closing(open_judge(settings, progress)) as judge:
            # Compared once more: opening a judge takes long, and another may have taken the name meanwhile.
            write_judge_record(location, record_to_write(location, record))
            ask(judge, queue, to_judge.num_left, write, progress)
    return judging_of(queue, spending, to_judge.lines.num_rows, len(to_judge.rows_done))


@contextmanager
def saying_what_is_kept(queue: JudgingQueue, progress: Progress) -> Iterator[None]:
    """Print how many outcomes are kept where Ctrl-C ends the judging within.

    Args:
        queue: The requests, of which ``ask`` has written all outcomes by then.
        progress: Prints it.
    """
    try:
        yield
    except KeyboardInterrupt:
        verb = "is" if queue.num_judged == 1 else "are"
        progress.say(
            f"{count_of(queue.num_judged, 'rollout')} of this call {verb} judged and kept; the same command goes on."
        )
        raise


def judging_of(queue: JudgingQueue, spending: Spending, rollouts: int, judged_before: int) -> Judging:
    """Sum up how a call ended.

    Args:
        queue: The queue, after its last answer.
        spending: What was spent.
        rollouts: Number of rollouts that the judge should have an outcome of.
        judged_before: Number that had one before the call.
    """
    return Judging(
        rollouts=rollouts,
        judged_before=judged_before,
        scored=queue.num_scored,
        unscored=dict(sorted(queue.unscored.items())),
        failed=dict(Counter(queue.failures).most_common()),
        stopped="spend_limit" if queue.is_out_of_money else "judge_failed" if queue.is_failing else None,
        last_failure=queue.last_failure,
        prompt_tokens=spending.prompt_tokens,
        reply_tokens=spending.reply_tokens,
        usd=spending.usd,
    )


def record_to_write(location: Location, asked: JudgeRecord) -> JudgeRecord:
    """Compare a judge with the one that has its name, and return the record of both.

    Args:
        location: The run's store.
        asked: The judge that is to score the run.

    Raises:
        InputError: Another judge has the name, or it judged a persona by another rubric.
        StoreError: The record is damaged.
    """
    known = read_judge_record(location, asked.name)
    if known is None:
        if asked.name in judges(location):
            raise _other_judge(asked.name, "has scores of which nothing says what gave them")
        return asked
    return agreed_record(known, asked)


def agreed_record(known: JudgeRecord, asked: JudgeRecord) -> JudgeRecord:
    """Return the record of a judge that goes on, with the rubrics of both calls.

    Args:
        known: The record that the name has.
        asked: The judge that is to judge now.

    Raises:
        InputError: They are not the same judge, or a rubric has changed.
    """
    if (known.source, known.model) != (asked.source, asked.model):
        raise _other_judge(asked.name, f"is {known.model or 'imported'} ({known.source}), and not {asked.model}")
    changed = [name for name, digest in asked.rubrics.items() if known.rubrics.get(name, digest) != digest]
    if changed:
        raise InputError(
            f"the judge {asked.name!r} has judged by another rubric: that of {', '.join(changed[:5])} differs.",
            code="other_rubric",
            field="--judge",
            hint="Give this one another name, so that its scores are not mixed with those.",
        )
    return known.model_copy(update={"rubrics": dict(sorted((known.rubrics | asked.rubrics).items()))})


def _other_judge(name: str, what: str) -> InputError:
    return InputError(
        f"the judge {name!r} {what}.",
        code="other_judge",
        field="--judge",
        hint="Give this one another name: --judge NAME.",
    )


def open_judge(settings: JudgeSettings, progress: Progress) -> Judge:
    """Open a judge: load its model, or make one request to its server.

    Args:
        settings: The judge.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: There is no such model or server, or the key is wrong.
    """
    if settings.server is None:
        return load_judge(settings.model, settings.max_tokens, progress)
    # The client takes a second to import, and is needed only here.
    from ...workers.judging.served_judge import ServedJudge

    judge = ServedJudge(settings.server, settings.max_tokens, settings.requests_per_s)
    try:
        judge.check()
    except BaseException:
        judge.close()
        raise
    return judge


def ask(
    judge: Judge, queue: JudgingQueue, num_left: int, write: Callable[[str, list[Outcome]], None], progress: Progress
) -> None:
    """Make the requests of a queue, and write the outcomes of each unit as soon as it has all.

    Args:
        judge: Answers the requests.
        queue: The requests.
        num_left: Number of rollouts to judge.
        write: Keeps the outcomes of a unit, by its id; when judging ends early, also of one that has only some.
        progress: Shows how far it is.
    """
    finished: tuple[str, list[Outcome]] | None = None
    try:
        with progress.checking("Judging") as show:
            tell = _teller(queue, num_left, progress)
            for answer in judge.answers(queue.next_request):
                finished = queue.take(answer)
                if finished is not None:
                    write(*finished)
                    finished = None
                show(queue.num_judged, num_left)
                tell()
    finally:
        # Also when it was interrupted, within a write too: what was judged is paid for.
        for unit_id, outcomes in chain([finished] if finished else [], queue.unfinished()):
            write(unit_id, outcomes)


def _teller(queue: JudgingQueue, num_left: int, progress: Progress) -> Callable[[], None]:
    """Return a function that prints a line of progress every ten seconds."""
    began = last = time.monotonic()

    def tell() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S and queue.num_judged:
            last = now
            left_s = (now - began) / queue.num_judged * (num_left - queue.num_judged)
            # The first answers of a batch come late, and do not show the pace.
            pace = f", {span(left_s)} left" if queue.num_judged >= max(20, num_left // 20) else ""
            progress.say(f"{queue.num_judged:,} of {num_left:,} rollouts judged{pace}")

    return tell


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {"persona-atlas": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
