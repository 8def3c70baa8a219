"""Prefixes that several conversations share, in both modes: read once, by the first that has them.

A causal model's keys and values at a position depend on the tokens up to it and on what is done to the model, and on
nothing else. So conversations whose first tokens are equal *and* whose interventions are equal may share what was
computed for those tokens; with another intervention the same tokens give other keys, and sharing them would mix two
experiments without anybody noticing. Both modes therefore compare tokens and intervention together.

In generation the first rollout with a prefix (its *leader*) reads it, its keys and values are copied out, and rollouts
that come later, perhaps much later, start from the copy; so the copies outlive the leader and a few are kept for those
to come. In reading, leader and followers stand in one pass, followers attend to the leader's part of the line, and
nothing is kept. Axes: see ``pooling``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...jobs.messages import ChatMessage
from ...jobs.poolings import TokenRange
from ...jobs.rollouts import ArrayName
from ..engine import TokenisedText
from ..interventions import AppliedIntervention
from .kv_cache import PrefixKV

_LEAST_TOKENS = 8
"""Tokens that a shared prefix must have to be worth a copy of its keys and values, or a mask of its own."""

_REMEMBERED = 8
"""Prefixes kept for rollouts to come; those that rollouts in the batch use are kept alive by these besides."""


@dataclass(eq=False)
class SharedPrefix:
    """A prefix that several rollouts have, filled in when the first of them has read it.

    Attributes:
        length: In tokens.
        kept: Its keys and values; None until they were computed.
        parts: What it adds to the poolings of whoever begins with it, per array.
    """

    length: int
    kept: PrefixKV | None = None
    parts: dict[ArrayName, Any] = field(default_factory=dict)


class PrefixCache:
    """The prefixes of one stream of generated rollouts, by their tokens and intervention.

    Args:
        tokens_of: Gives the ids with which the prompts of chats that open alike begin, whatever is asked.
    """

    def __init__(self, tokens_of: Callable[[Sequence[ChatMessage]], list[int]]) -> None:
        self._tokens_of = tokens_of
        self._token_ids: OrderedDict[tuple[ChatMessage, ...], list[int]] = OrderedDict()
        self._prefixes: OrderedDict[Hashable, SharedPrefix] = OrderedDict()

    def find(
        self,
        opening: tuple[ChatMessage, ...],
        prompt_ids: Sequence[int],
        most: int,
        intervention: AppliedIntervention | None,
    ) -> tuple[SharedPrefix | None, bool]:
        """Find the prefix that a rollout shares with others.

        Args:
            opening: The system messages that the rollout's chat begins with.
            prompt_ids: Of the rollout.
            most: Tokens that the prefix may have. Fewer than the prompt, for the rollout must compute its last token
                itself: the first token of the response is sampled from it.
            intervention: Of the rollout.

        Returns:
            The prefix, None where it shares none; and whether this rollout is the one to read it for the others.
        """
        if opening not in self._token_ids:
            # Two renderings with different questions, so it is remembered: rollouts of a persona come together.
            self._token_ids[opening] = self._tokens_of(opening)
            _forget_oldest(self._token_ids)
        ids = self._token_ids[opening]
        # A question may melt into the text before it, so that its prompt begins with other tokens: compare.
        if not _LEAST_TOKENS <= len(ids) <= most or list(prompt_ids[: len(ids)]) != ids:
            return None, False
        key = (tuple(ids), intervention)
        known = self._prefixes.get(key)
        if known is not None:
            self._prefixes.move_to_end(key)
            return known, False
        self._prefixes[key] = SharedPrefix(len(ids))
        _forget_oldest(self._prefixes)
        return self._prefixes[key], True


def _forget_oldest(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > _REMEMBERED:
        kept.popitem(last=False)


@dataclass(frozen=True, eq=False, slots=True)
class Reading:
    """A text in a pass that only reads.

    Attributes:
        index: Of the text, among all of the call.
        text: The text.
        intervention: What is changed while it is read.
        shared: How many of its first tokens another text of the pass, its leader, reads for it.
        leader: Which, counted in the pass; its own place where ``shared`` is 0.
    """

    index: int
    text: TokenisedText
    intervention: AppliedIntervention | None
    shared: int = 0
    leader: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that it takes of the pass; nothing after the last response matters to a causal model."""
        return length_of(self.text) - self.shared

    def in_line(self, begin: int, leader_begin: int, span: TokenRange) -> Iterator[TokenRange]:
        """Say where a span of the conversation stands in the line of the pass, in order.

        Args:
            begin: Place of the first token that the text has of its own.
            leader_begin: Place of its leader's first token.
            span: Of the conversation, end exclusive.

        Yields:
            What the leader reads of it, and what stands in its own part; empty ones are left out.
        """
        start, stop = span
        if start < min(stop, self.shared):
            yield leader_begin + start, leader_begin + min(stop, self.shared)
        if max(start, self.shared) < stop:
            yield begin + max(start, self.shared) - self.shared, begin + stop - self.shared


def length_of(text: TokenisedText) -> int:
    """Return how many tokens of a text are read: up to the end of its last response."""
    return text.responses[-1][1] if text.responses else 0


def in_passes(
    texts: Sequence[TokenisedText], interventions: Sequence[AppliedIntervention | None], budget: int
) -> Iterator[list[Reading]]:
    """Cut texts into passes in which those that share a prefix follow the one that reads it.

    In the order of intervention and tokens, texts that begin alike are neighbours, and comparing each with the leader
    before it finds them all without comparing every pair.

    Args:
        texts: Any number, of any length.
        interventions: Of each.
        budget: Tokens of a pass at most, a single longer text aside.

    Yields:
        The texts of one pass after another.
    """
    groups = {intervention: group for group, intervention in enumerate(dict.fromkeys(interventions))}
    ordered = sorted(range(len(texts)), key=lambda index: (groups[interventions[index]], texts[index].token_ids))
    readings: list[Reading] = []
    leader = total = 0
    for index in ordered:
        text, intervention = texts[index], interventions[index]
        shared = _num_shared(readings[leader], text, intervention) if readings else 0
        reading = Reading(index, text, intervention, shared, leader)
        if readings and total + reading.num_tokens > budget:
            # The leader is in the pass before: what it read is gone, and the next pass needs a leader of its own.
            yield readings
            readings, total, shared = [], 0, 0
        if not shared:
            leader = len(readings)
            reading = Reading(index, text, intervention, 0, leader)
        readings.append(reading)
        total += reading.num_tokens
    if readings:
        yield readings


def _num_shared(leader: Reading, text: TokenisedText, intervention: AppliedIntervention | None) -> int:
    """Count the first tokens that a text shares with a leader.

    All of them lie in both prompts, and neither prompt is shared whole, so that each text has the last token before its
    first response in its own part.
    """
    if leader.intervention is not intervention:
        return 0
    most = min((one.responses[0][0] - 1 if one.responses else 0) for one in (leader.text, text))
    pairs = zip(leader.text.token_ids[:most], text.token_ids[:most], strict=True)
    shared = next((place for place, (one, other) in enumerate(pairs) if one != other), most)
    return shared if shared >= _LEAST_TOKENS else 0
