"""What a reduction is asked for: array, judge, which rollouts count, percentiles. Checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...jobs.errors import InputError, closest
from ...jobs.poolings import DEFAULT_POOLING, TOKENS, keeps_tokens
from ...jobs.specs.spec_parts import CaptureSpec
from ...storage.derived.scores import NO_JUDGE, judges
from ...storage.query.run import Run
from ..thresholds import PERCENTILES

MIN_SCORE = 3.0
MIN_COUNT = 10
"""Least number of rollouts behind a role vector, with a judge; the paper's. The released code has 50."""

_HIGHEST_SCORE = 3.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a reduction is asked for.

    Attributes:
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
        judge: Judge whose scores decide which rollouts of a role count; None: every rollout counts.
        min_score: Least score of a rollout that counts, 0, 1, 2 or 3; has no meaning without a judge.
        min_count: Least number of rollouts behind a role vector, and of pairs behind a trait vector.
        percentiles: Percentiles of the thresholds, 0 to 100.
    """

    hook_point: str
    pooling: str
    judge: str | None
    min_score: float
    min_count: int
    percentiles: tuple[float, ...]

    @property
    def role_filter(self) -> str:
        """Which rollouts of a role count, as part of a sentence: ``scored 3``; ``all`` without a judge."""
        if self.judge is None:
            return "all"
        return f"scored {self.min_score:g}" + ("" if self.min_score >= _HIGHEST_SCORE else " or more")


def make_settings(
    run: Run,
    *,
    hook_point: str | None = None,
    pooling: str | None = None,
    judge: str | None = None,
    min_score: float | None = None,
    min_count: int | None = None,
    percentiles: Sequence[float] | None = None,
) -> Settings:
    """Fill in what was not given, and refuse what cannot be.

    Args:
        run: The run.
        hook_point: Hook point to reduce; None: ``resid_post`` if it was captured, else the first captured one.
        pooling: Pooling to reduce; None: ``response_mean`` if it was captured, else the first captured one.
        judge: Name of a judge; ``none`` for no scores; None: the only judge that has scored the run, if there is one.
        min_score: Least score of a role's rollout that counts, a whole number; None: 3.
        min_count: Least number of rollouts behind a role vector; None: 10 with a judge, 1 without.
        percentiles: Percentiles of the thresholds; None: 1, 25, 50 and 75.

    Raises:
        InputError: The pooling is ``tokens``, there is no such judge, several judges have scored the run and none is
            named, or a number is none, out of its range or ``min_score`` not a whole one.
    """
    min_score, min_count, percentiles = plain_numbers(min_score, min_count, percentiles)
    capture = run.record.spec.capture
    _refuse_tokens(capture, pooling)
    chosen = _judge(run, judge)
    least = MIN_SCORE if min_score is None else float(min_score)
    if not 0 <= least <= _HIGHEST_SCORE:
        raise _out_of_range("min_score", f"{least:g}", "from 0 to 3, the scores of a role's rollouts")
    if not least.is_integer():
        raise InputError(
            f"must be a whole number, because scores are rounded before they are compared, but is {least:g}.",
            code="not_whole",
            field="min_score",
            hint=f"Choose 0, 1, 2 or 3; with {math.ceil(least)} a rollout scored {math.ceil(least) - 0.4:g} counts.",
        )
    count = (1 if chosen is None else MIN_COUNT) if min_count is None else min_count
    if count < 1:
        raise _out_of_range("min_count", f"{count}", "at least 1")
    shares = tuple(float(percentile) for percentile in (PERCENTILES if percentiles is None else percentiles))
    if not shares or len(set(shares)) < len(shares) or not all(0 <= share <= 100 for share in shares):
        raise _out_of_range(
            "percentiles", ", ".join(f"{share:g}" for share in shares), "different numbers from 0 to 100"
        )
    return Settings(
        hook_point or _preferred("resid_post", capture.hook_points),
        pooling or _preferred(DEFAULT_POOLING, capture.pooled),
        chosen,
        least,
        count,
        shares,
    )


def plain_numbers(
    min_score: float | None, min_count: int | None, percentiles: Sequence[float] | None
) -> tuple[float | None, int | None, list[float] | None]:
    """Return the numbers that a reduction is asked for as Python's own, and refuse what is none.

    From Python anything may come, and a text or a bool that passes for a number would be stored, and give the same
    reduction another id.

    Args:
        min_score: Least score.
        min_count: Least number of rollouts.
        percentiles: Percentiles.

    Raises:
        InputError: One is not a number, or ``min_count`` not an integer.

    Example:
        >>> plain_numbers(3, np.int64(10), (1, 25.0))
        (3, 10, [1, 25.0])
    """
    if min_score is not None:
        min_score = _plain(min_score, "min_score", "a number", "Give 0, 1, 2 or 3.")
    if min_count is not None:
        min_count = _plain(min_count, "min_count", "an integer", "Give a count such as 10.")
    if percentiles is None:
        return min_score, min_count, None
    rule, hint = "a sequence of numbers", "Give numbers, such as [1, 25, 50, 75]."
    if isinstance(percentiles, str) or not hasattr(percentiles, "__iter__"):
        raise _not_a_number("percentiles", percentiles, rule, hint)
    return min_score, min_count, [_plain(percentile, "percentiles", rule, hint) for percentile in percentiles]


def _plain(value: Any, field: str, rule: str, hint: str) -> Any:
    kinds = (int, np.integer) if field == "min_count" else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise _not_a_number(field, value, rule, hint)
    return value.item() if isinstance(value, np.generic) else value


def _not_a_number(field: str, value: object, rule: str, hint: str) -> InputError:
    return InputError(f"must be {rule}, but is {value!r}.", code="not_a_number", field=field, hint=hint)


def refuse_unused_min_score(run: Run, judge: str | None, min_score: float | None) -> None:
    """Refuse a least score where no judge's scores are used, which would leave every rollout in.

    Args:
        run: The run.
        judge: Name of a judge; ``none`` for no scores; None: the only judge that has scored the run, if there is one.
        min_score: Least score that was asked for; None if none was.

    Raises:
        InputError: A least score was given, and scores are not used.
    """
    if min_score is None or (judge != NO_JUDGE and (judge is not None or judges(run.location))):
        return
    raise InputError(
        "there are no scores to select by: "
        + ("the judge none ignores them." if judge else "no judge has scored the run."),
        code="no_scores",
        field="min_score",
        hint="Leave the least score out, or name a judge."
        if judge
        else "Leave the least score out, or score the run with persona-atlas judge or scores import.",
    )


def asked_again(run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an earlier reduction was asked for, as keywords of ``make_settings``.

    Args:
        run: The run.
        facts: Facts of the earlier reduction; empty if there is none.
    """
    asked = asked_of(facts)
    if asked.get("judge") is None and len(judges(run.location)) > 1:
        # Another judge has come since; which one counts is not for this to decide.
        asked["judge"] = facts.get("judge") or NO_JUDGE
    return asked


def asked_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stored reduction was asked for, with its least score as a whole number, and numbers as numbers.

    Earlier versions took any least score and counted as if it were the next whole number, and took texts and bools.

    Args:
        facts: Facts of the reduction; empty if there is none.

    Example:
        >>> asked_of({"asked": {"judge": "mine", "min_score": 2.5}})
        {'judge': 'mine', 'min_score': 3}
    """
    asked = dict(facts.get("asked", {}))
    least = asked.get("min_score")
    # A whole number stays as it was written, because what was asked for is part of some reductions' ids.
    if least is not None and (isinstance(least, str | bool) or not float(least).is_integer()):
        asked["min_score"] = math.ceil(float(least))
    count = asked.get("min_count")
    if count is not None and type(count) is not int:
        asked["min_count"] = math.ceil(count)
    percentiles = asked.get("percentiles")
    if percentiles is not None and any(isinstance(percentile, str | bool) for percentile in percentiles):
        asked["percentiles"] = [float(percentile) for percentile in percentiles]
    return asked


def _judge(run: Run, judge: str | None) -> str | None:
    if judge == NO_JUDGE:
        return None
    known = judges(run.location)
    if judge is None:
        if len(known) > 1:
            raise InputError(
                "several judges have scored the run.",
                code="which_judge",
                field="judge",
                hint=f"Name {', '.join(known)}; or {NO_JUDGE}, which ignores scores.",
            )
        return known[0] if known else None
    if judge not in known:
        there = (
            f"There are {', '.join(known)}."
            if known
            else "None has: leave the name out, and every rollout counts, or score the run with persona-atlas judge."
        )
        raise InputError(
            f"no judge {judge!r} has scored the run. {closest(judge, known)}".strip(),
            code="no_such_judge",
            field="judge",
            hint=there,
        )
    return judge


def _out_of_range(field: str, value: str, rule: str) -> InputError:
    return InputError(f"must be {rule}, but is {value}.", code="out_of_range", field=field, hint="Choose another.")


def _preferred(usual: str, captured: Sequence[str]) -> str:
    return usual if usual in captured else captured[0]


def _refuse_tokens(capture: CaptureSpec, pooling: str | None) -> None:
    """Refuse a pooling that keeps many vectors per rollout, and runs that captured nothing else."""
    if (pooling is not None and keeps_tokens(pooling)) or not capture.pooled:
        raise InputError(
            f"a reduction takes one vector per rollout, but {TOKENS} keeps one per token.",
            code="nothing_to_reduce",
            field="pooling",
            hint=f"Reduce {' or '.join(capture.pooled) or f'a run that captures {DEFAULT_POOLING}'}.",
        )
