"""Prefix sharing, in generation and in reading: a prefix that several conversations have is computed once.

In a causal model, the keys and values at a position depend only on the tokens up to that position and on their edits.
So conversations with the same first tokens *and* the same edits of their prompts may share the keys and values of these
tokens. With different edits the same tokens have different keys, and sharing them would silently mix two experiments;
so both modes compare tokens and edits together. Edits that act on the response only do not count: a prefix is prompt.

In generation, the first rollout with a prefix (its *leader*) computes it, the keys and values are copied out of its
slot, and later rollouts (*followers*) start from the copy. The copies outlive the leader, and a few are kept for
rollouts to come. In reading, leader and followers are in the same pass, the followers attend to the leader's segment of
the packed sequence, and nothing is kept. Axes: see ``pooling``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ....jobs.messages import ChatMessage
from ....jobs.poolings import TokenRange
from ....jobs.work.rollouts import ArrayName
from ...editing.edited_pass import PreparedEdits
from ...editing.interventions import AppliedIntervention, prompt_edits
from ...engine import TokenisedText
from ..passes.kv_cache import PrefixKV

LEAST_TOKENS = 8
"""Length from which a prefix is shared; for a shorter one, copying keys and values or an extra mask costs more."""

_REMEMBERED = 8
"""Number of prefixes kept for future rollouts. Rollouts that wait for their leader hold theirs, which stays as well."""


@dataclass(eq=False)
class SharedPrefix:
    """A prefix of several rollouts, filled in when its leader has computed it.

    Attributes:
        length: Length in tokens.
        kept: Copy of its keys and values; None until the leader has computed them.
        parts: Its contribution to the prompt poolings, by array; see ``Accumulator.parts``.
        edited: What edits did to its tokens; see ``EditTotals.of_range``.
    """

    length: int
    kept: PrefixKV | None = None
    parts: dict[ArrayName, Any] = field(default_factory=dict)
    edited: torch.Tensor | None = None


class PrefixCache:
    """The prefixes of one stream of generated rollouts, by their tokens and the edits of prompts.

    Args:
        tokens_of: Returns the token ids that all prompts with the given opening messages start with.
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
        edits: PreparedEdits | None,
    ) -> tuple[SharedPrefix | None, bool]:
        """Find the prefix that a rollout shares with others.

        Args:
            opening: The system messages at the start of the rollout's chat.
            prompt_ids: Token ids of the rollout's prompt.
            most: Maximum length of the prefix in tokens. Less than that of the prompt, because the rollout must compute
                its last prompt token itself: the first token of the response is sampled from its logits.
            edits: What prompt tokens of the rollout get; None for no edits.

        Returns:
            The prefix, or None where it shares none; and whether this rollout is its leader.
        """
        if opening not in self._token_ids:
            # Takes two renderings, so it is cached: rollouts with the same system prompt tend to follow one another.
            self._token_ids[opening] = self._tokens_of(opening)
            _forget_oldest(self._token_ids)
        ids = self._token_ids[opening]
        # The tokenizer may merge the start of a question with the text before it, so the tokens must be compared.
        if not LEAST_TOKENS <= len(ids) <= most or list(prompt_ids[: len(ids)]) != ids:
            return None, False
        key = (tuple(ids), edits)
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
class TextInPass:
    """A text in a reading pass.

    Attributes:
        index: Index of the text among all texts of the call.
        text: The conversation as token ids.
        intervention: Intervention to apply to its tokens; None for none.
        shared: Number of its first tokens that are computed as part of another text of the pass, its leader.
        leader: Index of the leader among the texts of the pass; its own index where ``shared`` is 0.
    """

    index: int
    text: TokenisedText
    intervention: AppliedIntervention | None
    shared: int = 0
    leader: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that it adds to the pass. Tokens after the last response are left out: the model is causal."""
        return length_of(self.text) - self.shared

    def in_line(self, begin: int, leader_begin: int, span: TokenRange) -> Iterator[TokenRange]:
        """Map a span of the conversation to ranges of the packed sequence, in order.

        Args:
            begin: Index of the text's own first token in the sequence, after the tokens that it shares.
            leader_begin: Index of its leader's first token in the sequence.
            span: Token range of the conversation, end exclusive.

        Yields:
            The part of the span in the leader's segment, then the part in its own; empty parts are left out.
        """
        start, stop = span
        if start < min(stop, self.shared):
            yield leader_begin + start, leader_begin + min(stop, self.shared)
        if max(start, self.shared) < stop:
            yield begin + max(start, self.shared) - self.shared, begin + stop - self.shared


def length_of(text: TokenisedText) -> int:
    """Return the number of tokens of a text up to the end of its last response; the rest is not read."""
    return text.responses[-1][1] if text.responses else 0


def in_passes(
    texts: Sequence[TokenisedText], interventions: Sequence[AppliedIntervention | None], budget: int
) -> Iterator[list[TextInPass]]:
    """Group texts into passes in which those that share a prefix follow the one that computes it.

    Sorted by the edits of their prompts and by tokens, texts with a common prefix are adjacent. So it is enough to
    compare each text with the latest leader instead of comparing all pairs.

    Args:
        texts: The texts, in any order.
        interventions: The intervention of each text; None for none.
        budget: Most tokens of a pass; a single longer text has a pass of its own.

    Yields:
        The texts of each pass.
    """
    keys = [prompt_edits(intervention) for intervention in interventions]
    groups = {key: group for group, key in enumerate(dict.fromkeys(keys))}
    ordered = sorted(range(len(texts)), key=lambda index: (groups[keys[index]], texts[index].token_ids))
    readings: list[TextInPass] = []
    leader = total = 0
    for index in ordered:
        text, intervention = texts[index], interventions[index]
        shared = _num_shared(readings[leader], text, intervention) if readings else 0
        reading = TextInPass(index, text, intervention, shared, leader)
        if readings and total + reading.num_tokens > budget:
            # The leader is in the previous pass, whose keys and values are gone: this text leads the next pass.
            yield readings
            readings, total, shared = [], 0, 0
        if not shared:
            leader = len(readings)
            reading = TextInPass(index, text, intervention, 0, leader)
        readings.append(reading)
        total += reading.num_tokens
    if readings:
        yield readings


def _num_shared(leader: TextInPass, text: TokenisedText, intervention: AppliedIntervention | None) -> int:
    """Count the first tokens that a text shares with a leader; 0 where sharing is not worth it.

    The shared tokens are part of both prompts and never a whole prompt, so that the last prompt token of each text,
    which ``prompt_last`` needs, is in its own segment.
    """
    if prompt_edits(leader.intervention) is not prompt_edits(intervention):
        return 0
    most = min((one.responses[0][0] - 1 if one.responses else 0) for one in (leader.text, text))
    pairs = zip(leader.text.token_ids[:most], text.token_ids[:most], strict=True)
    shared = next((place for place, (one, other) in enumerate(pairs) if one != other), most)
    return shared if shared >= LEAST_TOKENS else 0
