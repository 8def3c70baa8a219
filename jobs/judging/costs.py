"""Tokens, money and time of judging: estimated before, and counted while it goes on. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import InputError
from .answers import Answer

ASSUMED_REQUEST_S = 1.0
"""Seconds that a request is assumed to take, for the estimate of time; while judging, the real pace is shown."""

REPLY_TOKENS = 3
"""Tokens that a reply is estimated at: a number and the end of the turn."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a judge, in US dollars per million tokens.

    Attributes:
        prompt_usd: Of tokens of the request.
        reply_usd: Of tokens of the reply.
    """

    prompt_usd: float
    reply_usd: float

    def usd(self, prompt_tokens: float, reply_tokens: float) -> float:
        """Return the price of some tokens in US dollars.

        Example:
            >>> Prices(0.5, 2.0).usd(1_000_000, 500_000)
            1.5
        """
        return (prompt_tokens * self.prompt_usd + reply_tokens * self.reply_usd) / 1e6


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What judging is expected to take, if the first reply about each rollout can be read.

    Attributes:
        rollouts: Number of rollouts to judge.
        prompt_tokens: Tokens of the requests, estimated from the words of the rubrics and questions and from the stored
            token counts of the responses.
        reply_tokens: Tokens of the replies.
        usd: Price in US dollars; None without prices.
        seconds: Time in seconds, at a second a request and with as many under way as may be; at least one second where
            there is anything to judge. None for a model that this process runs, whose pace is this machine's.
    """

    rollouts: int
    prompt_tokens: int
    reply_tokens: int
    usd: float | None
    seconds: float | None


def estimate_cost(
    prompt_tokens: int, rollouts: int, prices: Prices | None, concurrency: int, requests_per_s: float | None
) -> CostEstimate:
    """Estimate the tokens, money and time of judging.

    Args:
        prompt_tokens: Estimated tokens of all requests.
        rollouts: Number of rollouts to judge.
        prices: Prices of the judge; None where they are not known.
        concurrency: Number of requests in flight at a time; 0 for a model that this process runs.
        requests_per_s: Limit on requests per second; None for none.

    Example:
        >>> estimate_cost(2_000_000, 10_000, Prices(0.4, 1.6), 32, 20.0)
        CostEstimate(rollouts=10000, prompt_tokens=2000000, reply_tokens=30000, usd=0.848, seconds=500.0)
    """
    reply_tokens = rollouts * REPLY_TOKENS
    seconds = None
    if concurrency:
        # The last requests take as long as the first, however few are under way with them.
        at_a_time = math.ceil(rollouts / concurrency) * ASSUMED_REQUEST_S
        seconds = max(at_a_time, float(math.ceil(rollouts / requests_per_s)) if requests_per_s else 0.0)
    usd = prices.usd(prompt_tokens, reply_tokens) if prices else None
    return CostEstimate(rollouts, prompt_tokens, reply_tokens, usd, seconds)


@dataclass
class Spending:
    """Counts the tokens of a judge while it works, and says when the spend limit is reached.

    Attributes:
        prices: Prices of the judge; None where they are not known.
        max_usd: Limit in US dollars; None for none.
        max_reply_tokens: Most tokens of a reply, which a request in flight may come to.
        prompt_tokens: Tokens of the requests so far, as the judge counts them, or as estimated where it does not.
        reply_tokens: Tokens of the replies so far.
    """

    prices: Prices | None = None
    max_usd: float | None = None
    max_reply_tokens: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    _in_flight: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_usd is not None and self.prices is None:
            raise InputError(
                "needs the judge's prices, without which nothing is known of what is spent.",
                code="no_prices",
                field="--max-spend",
                hint="Add --price-in and --price-out, in US dollars per million tokens.",
            )

    @property
    def usd(self) -> float | None:
        """What was spent so far, in US dollars; None without prices."""
        return self.prices.usd(self.prompt_tokens, self.reply_tokens) if self.prices else None

    @property
    def is_waiting(self) -> bool:
        """Whether requests are in flight, whose cost is not known yet."""
        return bool(self._in_flight)

    def may_ask(self, row: int, ask: int, num_tokens: int) -> bool:
        """Whether one more request stays within the limit, if it and all in flight cost what they may at most.

        Args:
            row: Row of the rollout that is asked about.
            ask: How often it was asked about, with this request.
            num_tokens: Estimated tokens of the request.
        """
        if not self.has_room(num_tokens):
            return False
        self._in_flight[row, ask] = num_tokens
        return True

    def has_room(self, num_tokens: int) -> bool:
        """Whether one more request would stay within the limit; nothing is counted.

        Args:
            num_tokens: Estimated tokens of the request.
        """
        if self.max_usd is None or self.prices is None:
            return True
        waiting = len(self._in_flight) + 1
        prompt_tokens = self.prompt_tokens + sum(self._in_flight.values()) + num_tokens
        return self.prices.usd(prompt_tokens, self.reply_tokens + waiting * self.max_reply_tokens) <= self.max_usd

    def count(self, answer: Answer) -> None:
        """Count the tokens of an answer; those of a request that failed, too, since it may have been paid for."""
        key = (answer.request.judged.row, answer.request.ask)
        estimated = self._in_flight.pop(key, answer.request.judged.num_tokens)
        self.prompt_tokens += estimated if answer.num_prompt_tokens is None else answer.num_prompt_tokens
        replied = REPLY_TOKENS if answer.reply is not None else 0
        self.reply_tokens += replied if answer.num_reply_tokens is None else answer.num_reply_tokens
