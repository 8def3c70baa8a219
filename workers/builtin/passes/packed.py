"""Packed forward passes: tokens of many conversations in one sequence, without padding.

The input of a pass is one sequence of N tokens (the *line*): first one token for each decoding slot of the KV cache,
then *segments*: prompts, prompts without their shared prefix, or existing conversations. For transformers it is a batch
of size one, with position ids that restart for every conversation. Everything in a decoder layer except attention works
token by token (norms, projections, the MLP, the router of a mixture of experts), so conversations cannot mix there.
Attention is implemented here and registered with transformers under a name. It splits the sequence, and each
conversation's queries attend to the keys of that conversation only.

Which keys a query may attend to *within* its conversation (causal, sliding window, chunked) is still the model's rule:
transformers passes it as a function of query and key positions, and it is evaluated at the positions within each
conversation.

Compared with padded batches: no arithmetic is spent on padding, prompts join a decoding batch without an extra pass,
and no mask is needed between conversations, because scores between them are never computed.

Axes: N tokens of the pass, A slots that decode, B slots of the cache, S tokens of a segment, T positions of one
conversation, H query heads, K key heads, G = H / K, D head size, Q = G * S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .attention import (
    Lengths,
    Scoring,
    additive,
    attention,
    attention_of_lengths,
    decoding_attention,
    has_kernel_for_lengths,
    products,
)
from .kv_cache import KVCache
from .registration import KeptElsewhere, Rule, running_pass
from .to_device import to_device

_FEW_SCORES_BYTES = 2 * 2**20
"""Size of a segment's scores up to which two matrix products are faster on a CPU than torch's attention kernel. The
kernel guards against queries that may attend to nothing, which do not occur here: every token attends to itself. Above
this size the scores exceed the CPU's cache, and the kernel, which never holds all of them, is faster."""

_MOST_SCORES_BYTES = 64 * 2**20
"""Size of a segment's scores up to which they, or its mask, are held at once. A text of 8,192 tokens has 4 GiB of
scores in a layer of 16 heads in float32, and a soft cap keeps more than one copy of them."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one conversation in a packed sequence.

    Attributes:
        start: Position of the first token in its conversation. Earlier positions are a shared prefix, which is already
            in the cache slot or in another segment of the same sequence.
        length: Number of tokens.
        slot: Slot of the KV cache that keys and values are written to; None: they are not kept.
        prefix_at: Without a slot, the index in the sequence at which the ``start`` tokens of the shared prefix begin,
            in the segment of another conversation.
    """

    start: int
    length: int
    slot: int | None = None
    prefix_at: int = 0


class PackedPass:
    """The layout of one forward pass, and its attention.

    Args:
        device: ``cpu`` or ``cuda``: where the model is.
        segments: The segments, which follow the decoded tokens in the sequence.
        decoded_positions: Position of the one token of each decoding slot; these are slots 0, 1, ... of the cache. A
            tensor on the device is read whenever the pass runs.
        cache: The KV cache; None where no segment has a slot.
        num_keys: Positions of the cache that attention of the decoding slots covers; None: up to the longest of them.
    """

    def __init__(
        self,
        device: str,
        segments: Sequence[Segment],
        decoded_positions: Sequence[int] | torch.Tensor = (),
        cache: KVCache | None = None,
        num_keys: int | None = None,
    ) -> None:
        self._device = device
        self._cache = cache
        self._segments = list(segments)
        self._num_decoded = len(decoded_positions)
        self._slots_A = torch.arange(self._num_decoded, device=device)
        self._positions_A = (
            decoded_positions if isinstance(decoded_positions, torch.Tensor) else to_device(decoded_positions, device)
        )
        # Attention of the decoding slots covers the cache up to the longest of them, not all that is allocated.
        self._num_keys = max((int(one) for one in decoded_positions), default=-1) + 1 if num_keys is None else num_keys
        # Layers of the same kind have the same rule, so each mask is built once per pass and not once per layer.
        self._masks: dict[tuple[int, int, int, int], torch.Tensor] = {}
        self._rules: list[Rule] = []
        self._lengths: Lengths | None = None
        self._key_places: torch.Tensor | None = None

    def run(self, model: Any, token_ids: Sequence[int], wanted: Sequence[int] | None) -> torch.Tensor:
        """Run the model.

        Args:
            model: A causal language model whose attention is ``ATTENTION``.
            token_ids: N token ids: of the decoding slots, then of the segments.
            wanted: Indices of the tokens whose logits are needed; None for none (the logits of one token are computed
                anyway, unless a hook ends the pass before).

        Returns:
            Logits ``(len(wanted), V)``.
        """
        starts = [range(one.start, one.start + one.length) for one in self._segments]
        positions = to_device([at for each in starts for at in each], self._device)
        # The LM head is a large matrix product: apply it only to tokens whose logits are sampled from.
        kept = to_device(list(wanted) if wanted else [0], self._device)
        return self._logits(model, to_device(token_ids, self._device), torch.cat([self._positions_A, positions]), kept)

    def run_decoded(self, model: Any, token_ids_A: torch.Tensor) -> torch.Tensor:
        """Run the model over the decoding slots alone, from tensors on the device and without waiting for it.

        Args:
            model: A causal language model whose attention is ``ATTENTION``.
            token_ids_A: int64, the token of each decoding slot.

        Returns:
            Logits ``(A, V)``.
        """
        # 0 asks transformers for the logits of every token.
        return self._logits(model, token_ids_A, self._positions_A, 0)

    def _logits(
        self, model: Any, token_ids_N: torch.Tensor, positions_N: torch.Tensor, kept: torch.Tensor | int
    ) -> torch.Tensor:
        with self.running():
            output = model(
                input_ids=token_ids_N[None],
                position_ids=positions_N[None],
                # Without a cache object some families build their own causal mask over the whole sequence. With one
                # they call the registered mask function (``_rule``).
                past_key_values=KeptElsewhere(),
                use_cache=True,
                logits_to_keep=kept,
            )
        return output.logits[0]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make the attention of decoder layers that run within the context that of this pass."""
        token = running_pass.set(self)
        try:
            yield
        finally:
            running_pass.reset(token)

    def attend(
        self,
        layer: int,
        query_HND: torch.Tensor,
        key_KND: torch.Tensor,
        value_KND: torch.Tensor,
        rule: Rule,
        scoring: Scoring,
    ) -> torch.Tensor:
        """Compute the attention of one layer, each conversation within itself.

        Args:
            layer: 0-based decoder layer.
            query_HND: Queries of the whole sequence, with rotary embeddings applied at each token's position.
            key_KND: Keys of the whole sequence, with rotary embeddings applied, too.
            value_KND: Values of the whole sequence.
            rule: Mask within a conversation: which keys a query may attend to.
            scoring: How scores become weights.

        Returns:
            ``(N, H, D)``, D being the head size of the values.
        """
        outputs_NHD: list[torch.Tensor] = []
        first = self._num_decoded
        in_one_call = self._can_attend_in_one_call(query_HND, value_KND, rule, scoring)
        if first:
            outputs_NHD.append(
                self._attend_decoded(
                    layer, query_HND[:, :first], key_KND[:, :first], value_KND[:, :first], rule, scoring
                )
            )
        for segment in self._segments:
            part = slice(first, first + segment.length)
            first += segment.length
            query_HSD, key_KTD, value_KTD = query_HND[:, part], key_KND[:, part], value_KND[:, part]
            if segment.slot is not None:
                # Written to the cache and returned together with the earlier positions of the slot: the shared prefix.
                assert self._cache is not None
                key_KTD, value_KTD = self._cache.extend(layer, segment.slot, segment.start, key_KTD, value_KTD)
            if in_one_call:
                continue
            if segment.slot is None and segment.start:
                # The prefix is part of another segment of this sequence, at the same positions, so its keys and values
                # (rotary embeddings included) are those that this conversation would have.
                before = slice(segment.prefix_at, segment.prefix_at + segment.start)
                key_KTD = torch.cat([key_KND[:, before], key_KTD], dim=1)
                value_KTD = torch.cat([value_KND[:, before], value_KTD], dim=1)
            outputs_NHD.append(self._attend_segment(segment, query_HSD, key_KTD, value_KTD, rule, scoring))
        if in_one_call:
            outputs_NHD.append(self._attend_in_one_call(query_HND, key_KND, value_KND, scoring))
        return outputs_NHD[0] if len(outputs_NHD) == 1 else torch.cat(outputs_NHD)

    def _can_attend_in_one_call(
        self, query_HND: torch.Tensor, value_KND: torch.Tensor, rule: Rule, scoring: Scoring
    ) -> bool:
        """Return whether the segments' attention is causal in each, and all keys are in this sequence."""
        return (
            bool(self._segments)
            and not scoring.needs_scores
            and all(one.slot is None or not one.start for one in self._segments)
            and (rule.reach is None or max(one.start + one.length for one in self._segments) <= rule.reach)
            and has_kernel_for_lengths(query_HND, value_KND)
        )

    def _attend_in_one_call(
        self, query_HND: torch.Tensor, key_KND: torch.Tensor, value_KND: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        first = self._num_decoded
        if self._lengths is None:
            own = [one.length for one in self._segments]
            self._lengths = Lengths.of(own, [one.start + one.length for one in self._segments], self._device)
            if any(one.start for one in self._segments):
                self._key_places = to_device(list(_key_places(self._segments, first)), self._device)
        places = self._key_places
        key_TKD, value_TKD = (
            (all_KND[:, first:] if places is None else all_KND[:, places]).transpose(0, 1)
            for all_KND in (key_KND, value_KND)
        )
        query_NHD = query_HND[:, first:].transpose(0, 1)
        return attention_of_lengths(query_NHD, key_TKD, value_TKD, self._lengths, scoring.scaling)

    def _attend_segment(
        self,
        segment: Segment,
        query_HSD: torch.Tensor,
        key_KTD: torch.Tensor,
        value_KTD: torch.Tensor,
        rule: Rule,
        scoring: Scoring,
    ) -> torch.Tensor:
        heads, length, groups = len(query_HSD), segment.length, len(query_HSD) // len(key_KTD)
        scores_bytes = heads * length * key_KTD.shape[1] * query_HSD.element_size()
        if query_HSD.device.type == "cpu" and scores_bytes <= _FEW_SCORES_BYTES:
            # In grouped-query attention, G query heads share a key head. Concatenating their queries to one head with
            # G * S queries avoids repeating the keys.
            query_KQD = query_HSD.unflatten(0, (-1, groups)).flatten(1, 2)
            mask_QT = self._segment_mask(rule, segment, query_HSD.dtype, groups)
            sinks_KQ1 = scoring.sinks_of(len(key_KTD), length)
            output_KQD = products(query_KQD, key_KTD, value_KTD, mask_QT, scoring, sinks_KQ1)
            return output_KQD.unflatten(1, (groups, length)).flatten(0, 1).transpose(0, 1)
        # Causal and without a prefix: torch's kernel then needs no mask, and skips the masked half. Not after a prefix,
        # where there are more keys than queries: torch's causal flag aligns both at their starts, not at their ends.
        plain = segment.start == 0 and (rule.reach is None or length <= rule.reach) and not scoring.needs_scores
        key_HTD, value_HTD = key_KTD.repeat_interleave(groups, dim=0), value_KTD.repeat_interleave(groups, dim=0)
        # What is held: the scores of all heads, or where torch's kernel computes them, the mask.
        held_bytes = scores_bytes if scoring.needs_scores else scores_bytes // heads
        if not plain and held_bytes > _MOST_SCORES_BYTES:
            size = max(1, length * _MOST_SCORES_BYTES // held_bytes)
            return self._attend_in_parts(size, segment, query_HSD, key_HTD, value_HTD, rule, scoring)
        mask_ST = None if plain else self._segment_mask(rule, segment, query_HSD.dtype, 1)
        sinks = scoring.sinks_of(heads, 1)
        output_1HSD = attention(query_HSD[None], key_HTD[None], value_HTD[None], mask_ST, scoring, sinks)
        return output_1HSD[0].transpose(0, 1)

    def _attend_in_parts(
        self,
        size: int,
        segment: Segment,
        query_HSD: torch.Tensor,
        key_HTD: torch.Tensor,
        value_HTD: torch.Tensor,
        rule: Rule,
        scoring: Scoring,
    ) -> torch.Tensor:
        """Compute the attention of a long segment for ``size`` queries at a time, with keys up to the last of them."""
        heads = len(query_HSD)
        parts_SHD: list[torch.Tensor] = []
        for first in range(0, segment.length, size):
            part = Segment(segment.start + first, min(size, segment.length - first))
            queries, keys = slice(first, first + part.length), slice(0, part.start + part.length)
            # Not kept for the other layers: together the masks of a long text are as large as the scores of a head.
            mask_ST = self._mask_of(rule, part, query_HSD.dtype)
            output_1HSD = attention(
                query_HSD[None, :, queries],
                key_HTD[None, :, keys],
                value_HTD[None, :, keys],
                mask_ST,
                scoring,
                scoring.sinks_of(heads, 1),
            )
            parts_SHD.append(output_1HSD[0].transpose(0, 1))
        return torch.cat(parts_SHD)

    def _attend_decoded(
        self,
        layer: int,
        query_HAD: torch.Tensor,
        key_KAD: torch.Tensor,
        value_KAD: torch.Tensor,
        rule: Rule,
        scoring: Scoring,
    ) -> torch.Tensor:
        assert self._cache is not None
        key_BKTD, value_BKTD = self._cache.append(layer, self._slots_A, self._positions_A, key_KAD, value_KAD)
        slots, num_keys = self._num_decoded, self._num_keys
        # A shorter rollout's slot is masked beyond its position.
        return decoding_attention(
            query_HAD.transpose(0, 1),
            key_BKTD[:slots, :, :num_keys],
            value_BKTD[:slots, :, :num_keys],
            self._decoded_mask(rule, query_HAD.dtype),
            scoring,
        )

    def _decoded_mask(self, rule: Rule, dtype: torch.dtype) -> torch.Tensor:
        key = (self._rules.index(rule), -1, 0, 1)
        if key not in self._masks:
            queries_A111 = self._positions_A[:, None, None, None]
            keys_T = torch.arange(self._num_keys, device=self._device)
            # A slot holds its conversation from position 0 on, so an index in the cache is a position, and the model's
            # rule can be evaluated directly. Being causal, it also hides what an earlier rollout left in the slot.
            zero = torch.zeros_like(queries_A111)
            allowed_A11T = rule.allows(zero, zero, queries_A111, keys_T)
            self._masks[key] = additive(allowed_A11T, dtype)
        return self._masks[key]

    def _segment_mask(self, rule: Rule, segment: Segment, dtype: torch.dtype, times: int) -> torch.Tensor:
        """Return the additive mask of a segment, repeated ``times`` times: ``(times * S, T)``."""
        # Segments with the same positions share a mask, as prompts after the same system prompt often do.
        key = (self._rules.index(rule), segment.start, segment.length, times)
        if key not in self._masks:
            self._masks[key] = self._mask_of(rule, segment, dtype).repeat(times, 1)
        return self._masks[key]

    def _mask_of(self, rule: Rule, segment: Segment, dtype: torch.dtype) -> torch.Tensor:
        keys_T = torch.arange(segment.start + segment.length, device=self._device)
        queries_11S1 = keys_T[segment.start :][None, None, :, None]
        zero = torch.zeros_like(queries_11S1)
        return additive(rule.allows(zero, zero, queries_11S1, keys_T), dtype)[0, 0]

    @property
    def mask_bytes(self) -> int:
        """Bytes of the masks that were built so far."""
        return sum(mask.nbytes for mask in self._masks.values())

    def drop_masks(self) -> None:
        """Free the masks, which the next layer that needs them builds again."""
        self._masks.clear()

    def forget_masks(self) -> None:
        """Build the masks of the next run from the positions of then."""
        self._masks.clear()
        self._rules.clear()

    def rule_of(self, allows: Callable[..., torch.Tensor], reach: int | None) -> Rule:
        """Register a rule of this pass and return it; transformers makes one for every kind of layer."""
        self._rules.append(Rule(allows, reach))
        return self._rules[-1]


def _key_places(segments: Sequence[Segment], first: int) -> Iterator[int]:
    """Yield where in the sequence the keys of each segment are, those of its prefix included."""
    for segment in segments:
        yield from range(segment.prefix_at, segment.prefix_at + segment.start)
        yield from range(first, first + segment.length)
        first += segment.length
