"""Run tokens of many conversations through a model in one pass, packed: no padding, each at its own positions.

A pass is one line of tokens: first one token for each slot of a cache that decodes, then whole *segments* (a prompt,
what is left of one after a shared prefix, a conversation that exists already). To transformers the line is a batch of
one sequence of N tokens, with position ids that start anew for every conversation. Everything in a decoder layer but
attention works on each token by itself (norms, projections, the MLP, a mixture's router), so it neither knows nor
needs to know where one conversation ends. Attention is ours, registered with transformers under a name, and is what
keeps conversations apart: it cuts the line, and gives the tokens of each conversation their own keys and no others.

Which keys a query may attend to *within* its conversation (causal, sliding, chunked) stays the model's own rule:
transformers hands it over as a function of query and key position, and it is asked at each conversation's own
positions.

Compared with padded batches, no product is spent on padding, prompts join a batch that is decoding without a pass of
their own, and no mask has to hide one conversation from another: what is cut out is never multiplied.

Axes: N tokens of the pass, A slots that decode, B slots of the cache, S tokens of a segment, T positions of one
conversation, H query heads, K key heads, G = H / K, D head size, Q = G * S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache

from .kv_cache import KVCache

ATTENTION = "persona_atlas_packed"
"""The name of this attention in transformers' registry."""

_FEW_QUERIES = 16
"""Queries a head up to which a processor would spend more on transposing the keys than on multiplying them. A decoding
slot has G queries a key head, one for each query head that shares it, and never more than this in known families."""

_FEW_SCORES_BYTES = 2 * 2**20
"""Scores of a segment up to which a processor is quicker with two plain products than with torch's kernel, which spends
time on guarding against queries that may attend to nothing (there are none here: each sees itself). Beyond this the
scores leave the processor's cache, and the kernel, which never holds all of them, is quicker."""

_running: ContextVar[PackedPass | None] = ContextVar("persona_atlas_pass", default=None)
"""The pass that the model is running: transformers calls a registered attention with tensors and the layer's module,
and has no argument by which the layout of the line could reach it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one conversation.

    Attributes:
        start: Position of the first; what comes before it is in the slot of the cache already, or in the line.
        length: How many.
        slot: The cache's slot that they are kept in; None keeps nothing.
        prefix_at: Without a slot, the place in the line of the ``start`` tokens that come before: another segment's,
            with which this conversation shares its prefix.
    """

    start: int
    length: int
    slot: int | None = None
    prefix_at: int = 0


@dataclass(frozen=True, slots=True)
class _Rule:
    """What transformers says of a layer's mask.

    Attributes:
        allows: Says for batch, head, query position and key position, all tensors, whether the one may attend to the
            other.
        reach: Length up to which a conversation that starts at 0 is plainly causal under this rule: a sliding window is
            not felt by what is shorter. None: at any length.
    """

    allows: Callable[..., torch.Tensor]
    reach: int | None


class PackedPass:
    """The layout of one forward pass, and its attention.

    Args:
        device: Where the model is.
        segments: What follows the decoded tokens in the line.
        decoded_positions: Position of the one token of each decoding slot; these are slots 0, 1, ... of the cache.
        cache: Holds keys and values of the slots; None where every segment keeps nothing.
    """

    def __init__(
        self,
        device: str,
        segments: Sequence[Segment],
        decoded_positions: Sequence[int] = (),
        cache: KVCache | None = None,
    ) -> None:
        self._device = device
        self._cache = cache
        self._segments = list(segments)
        self._num_decoded = len(decoded_positions)
        self._slots_A = torch.arange(self._num_decoded, device=device)
        self._positions_A = torch.tensor(list(decoded_positions), dtype=torch.long, device=device)
        # Of the cache no more is multiplied than the longest of these slots holds.
        self._num_keys = max(decoded_positions, default=-1) + 1
        # Layers of one kind share a rule, and all layers share the layout: each mask is made once a pass.
        self._masks: dict[tuple[int, int, int, int], torch.Tensor] = {}
        self._rules: list[_Rule] = []

    def run(self, model: Any, token_ids: Sequence[int], wanted: Sequence[int] | None) -> torch.Tensor:
        """Run the model.

        Args:
            model: A causal language model whose attention is ``ATTENTION``.
            token_ids: N ids in the order of the layout.
            wanted: Which of the N places need logits; None where nobody reads them (one is computed all the same,
                unless the pass is stopped before).

        Returns:
            Logits ``(len(wanted), V)``.
        """
        positions = [torch.arange(s.start, s.start + s.length, device=self._device) for s in self._segments]
        # The LM head is a large product: only for tokens from which something is sampled.
        kept = torch.tensor(list(wanted) if wanted else [0], device=self._device)
        token = _running.set(self)
        try:
            output = model(
                input_ids=torch.tensor([list(token_ids)], device=self._device),
                position_ids=torch.cat([self._positions_A, *positions])[None],
                # With no cache at all some families build masks of their own; with this one they ask us.
                past_key_values=_KeptElsewhere(),
                use_cache=True,
                logits_to_keep=kept,
            )
        finally:
            _running.reset(token)
        return output.logits[0]

    def attend(
        self,
        layer: int,
        query_HND: torch.Tensor,
        key_KND: torch.Tensor,
        value_KND: torch.Tensor,
        rule: _Rule,
        scaling: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """Let every conversation attend to itself.

        Args:
            layer: Which layer's.
            query_HND: Of the whole line, rotated to each token's own position already.
            key_KND: Of the whole line, likewise.
            value_KND: Of the whole line.
            rule: Which keys a query may attend to.
            scaling: Of the scores.
            softcap: Bound of the scores, where the family has one.

        Returns:
            ``(N, H, D)``, in the values' head size.
        """
        outputs_NHD: list[torch.Tensor] = []
        first = self._num_decoded
        if first:
            outputs_NHD.append(
                self._attend_decoded(
                    layer, query_HND[:, :first], key_KND[:, :first], value_KND[:, :first], rule, scaling, softcap
                )
            )
        for segment in self._segments:
            part = slice(first, first + segment.length)
            first += segment.length
            query_HSD, key_KTD, value_KTD = query_HND[:, part], key_KND[:, part], value_KND[:, part]
            if segment.slot is not None:
                # Kept, and given back with what the slot held before: its shared prefix.
                assert self._cache is not None
                key_KTD, value_KTD = self._cache.extend(layer, segment.slot, segment.start, key_KTD, value_KTD)
            elif segment.start:
                # The prefix stands earlier in this line, at the same positions: its keys need no second computation.
                before = slice(segment.prefix_at, segment.prefix_at + segment.start)
                key_KTD = torch.cat([key_KND[:, before], key_KTD], dim=1)
                value_KTD = torch.cat([value_KND[:, before], value_KTD], dim=1)
            outputs_NHD.append(self._attend_segment(segment, query_HSD, key_KTD, value_KTD, rule, scaling, softcap))
        return outputs_NHD[0] if len(outputs_NHD) == 1 else torch.cat(outputs_NHD)

    def _attend_segment(
        self,
        segment: Segment,
        query_HSD: torch.Tensor,
        key_KTD: torch.Tensor,
        value_KTD: torch.Tensor,
        rule: _Rule,
        scaling: float,
        softcap: float | None,
    ) -> torch.Tensor:
        heads, length, groups = len(query_HSD), segment.length, len(query_HSD) // len(key_KTD)
        scores_bytes = heads * length * key_KTD.shape[1] * query_HSD.element_size()
        if query_HSD.device.type == "cpu" and scores_bytes <= _FEW_SCORES_BYTES:
            # In grouped-query attention G query heads share a key head. Their queries are laid one after the other,
            # as if they were one head with G * S queries, so that no key has to be repeated for them.
            query_KQD = query_HSD.unflatten(0, (-1, groups)).flatten(1, 2)
            mask_QT = self._segment_mask(rule, segment, query_HSD.dtype, groups)
            output_KQD = _products(query_KQD, key_KTD, value_KTD, mask_QT, scaling, softcap)
            return output_KQD.unflatten(1, (groups, length)).flatten(0, 1).transpose(0, 1)
        # Plainly causal and nothing before it: torch's kernel then needs no mask, and skips what a mask would hide. Not
        # for a segment after a prefix: it has more keys than queries, and torch's causal flag would align the two at
        # their starts instead of their ends.
        plain = segment.start == 0 and (rule.reach is None or length <= rule.reach) and softcap is None
        output_1HSD = _attention(
            query_HSD[None],
            key_KTD.repeat_interleave(groups, dim=0)[None],
            value_KTD.repeat_interleave(groups, dim=0)[None],
            None if plain else self._segment_mask(rule, segment, query_HSD.dtype, 1),
            scaling,
            softcap,
        )
        return output_1HSD[0].transpose(0, 1)

    def _attend_decoded(
        self,
        layer: int,
        query_HAD: torch.Tensor,
        key_KAD: torch.Tensor,
        value_KAD: torch.Tensor,
        rule: _Rule,
        scaling: float,
        softcap: float | None,
    ) -> torch.Tensor:
        assert self._cache is not None
        key_BKTD, value_BKTD = self._cache.append(layer, self._slots_A, self._positions_A, key_KAD, value_KAD)
        slots, heads, num_keys = self._num_decoded, key_KAD.shape[0], self._num_keys
        # The queries that share a key head stand side by side, as if they were one query of G positions: nothing of
        # the cache has to be repeated for them. The slots of a shorter rollout are masked beyond its position.
        query_AKGD = query_HAD.transpose(0, 1).unflatten(1, (heads, -1))
        mask_A11T = self._decoded_mask(rule, query_HAD.dtype)
        attention = _products if query_AKGD.device.type == "cpu" else _attention
        output_AKGD = attention(
            query_AKGD,
            key_BKTD[:slots, :, :num_keys],
            value_BKTD[:slots, :, :num_keys],
            mask_A11T.expand(-1, -1, query_AKGD.shape[2], -1),
            scaling,
            softcap,
        )
        return output_AKGD.flatten(1, 2)

    def _decoded_mask(self, rule: _Rule, dtype: torch.dtype) -> torch.Tensor:
        key = (self._rules.index(rule), -1, 0, 1)
        if key not in self._masks:
            slots_A111, queries_A111 = self._slots_A[:, None, None, None], self._positions_A[:, None, None, None]
            keys_T = torch.arange(self._num_keys, device=self._device)
            # Every slot holds its conversation from position 0 on, so a place in the cache is a position, and the rule
            # of the model can be asked directly. "Causal" also hides what a rollout before left in the slot.
            allowed_A11T = rule.allows(slots_A111, torch.zeros_like(slots_A111), queries_A111, keys_T)
            self._masks[key] = _additive(allowed_A11T, dtype)
        return self._masks[key]

    def _segment_mask(self, rule: _Rule, segment: Segment, dtype: torch.dtype, times: int) -> torch.Tensor:
        """Return the mask ``(times * S, T)``: the segment's own, so many times."""
        # Segments of the same positions share a mask: prompts under one system prompt often do.
        key = (self._rules.index(rule), segment.start, segment.length, times)
        if key not in self._masks:
            keys_T = torch.arange(segment.start + segment.length, device=self._device)
            queries_11S1 = keys_T[segment.start :][None, None, :, None]
            zero = torch.zeros_like(queries_11S1)
            self._masks[key] = _additive(rule.allows(zero, zero, queries_11S1, keys_T), dtype)[0, 0].repeat(times, 1)
        return self._masks[key]

    def rule_of(self, allows: Callable[..., torch.Tensor], reach: int | None) -> _Rule:
        """Remember a rule of this pass; transformers makes one for every kind of layer."""
        self._rules.append(_Rule(allows, reach))
        return self._rules[-1]


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Made once a pass; a mask of booleans would be turned into this in every layer.
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention; no mask means plainly causal. Torch's kernel knows no softcap."""
    if mask is not None and softcap is not None:
        return _products(query, key, value, mask, scaling, softcap)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling)


def _products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention as two plain products. Scores are capped the way Gemma 2 does it, before the mask."""
    query = query * scaling
    # Few queries by many keys: a processor that multiplies keys by queries need not transpose the keys first.
    few = query.shape[-2] <= _FEW_QUERIES and query.device.type == "cpu"
    scores = (key @ query.mT).mT.contiguous() if few else query @ key.mT
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    # Torch sums a softmax in float32 inside, whatever goes in and comes out.
    return (scores + mask).softmax(dim=-1) @ value


class _KeptElsewhere(Cache):
    """A cache in name only: transformers asks for one, but keys and values go to the pass's own inside attention.

    It gives back the keys and values of the line as they are, and claims to hold nothing, so that transformers takes
    the line for a first pass and leaves positions (which are given) and masks (which are ours) alone.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return int(query_length), 0


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    running = _running.get()
    assert running is not None, "this attention runs in a packed pass"
    scaling = options.get("scaling")
    output_NHD = running.attend(
        module.layer_idx,
        query[0],
        key[0],
        value[0],
        attention_mask,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        options.get("softcap"),
    )
    return output_NHD[None], None


def _rule(*, mask_function: Callable[..., torch.Tensor], local_size: int | None = None, **_: Any) -> _Rule:
    running = _running.get()
    assert running is not None, "this mask is of a packed pass"
    return running.rule_of(mask_function, local_size)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _rule)


@contextmanager
def plain_attention(model: Any, name: str) -> Iterator[None]:
    """Let a model run as transformers runs it by itself, for the time of the context.

    Args:
        model: One whose attention is ``ATTENTION``.
        name: The attention it had before.
    """
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION)
