"""What transformers calls during a packed pass: an attention function, a mask function, and a cache that keeps nothing.

transformers passes the attention function tensors and the layer's module only, so it asks the pass that is running,
which knows the layout of the sequence.

Axes: N tokens of the pass, H query heads, K key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import causal_mask_function

from ....jobs.errors import UnitError
from .attention import Scoring

ATTENTION = "persona_atlas_packed"
"""The name of this attention in transformers' registry."""

_HONOURED = {"scaling", "softcap", "s_aux"}
_WITHOUT_EFFECT = {
    "dropout",
    "sliding_window",
    "position_ids",
    "position_embeddings",
    "cache_position",
    "hidden_states",
    "is_causal",
    "deterministic",
    "use_cache",
}
"""Arguments of an attention function that need nothing here: dropout is off, a window is part of the mask, positions
are in the queries and keys."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The attention mask of one kind of layer, as transformers defines it.

    Attributes:
        allows: Function of batch, head, query position and key position (all tensors); whether that query may attend to
            that key. The batch is always 0, because a pass is a batch of one for transformers.
        reach: Longest conversation for which the rule is known to be the same as causal attention: a sliding window has
            no effect on shorter ones. None: it is causal at any length.
    """

    allows: Callable[..., torch.Tensor]
    reach: int | None


class RunningPass(Protocol):
    """A pass that a model is running."""

    def rule_of(self, allows: Callable[..., torch.Tensor], reach: int | None) -> Rule:
        """Register a rule of this pass and return it; transformers makes one for every kind of layer."""
        ...

    def attend(
        self,
        layer: int,
        query_HND: torch.Tensor,
        key_KND: torch.Tensor,
        value_KND: torch.Tensor,
        rule: Rule,
        scoring: Scoring,
    ) -> torch.Tensor:
        """Compute the attention of one layer, ``(N, H, D)``."""
        ...


running_pass: ContextVar[RunningPass | None] = ContextVar("persona_atlas_pass", default=None)
"""The pass that the model is running. A context variable, because transformers calls a registered attention function
with tensors and the layer's module only, and has no argument for the layout of the sequence."""


class KeptElsewhere(Cache):
    """A placeholder for transformers' cache; the real keys and values are written to ``KVCache`` in the attention.

    It returns keys and values unchanged and reports a length of 0, so that transformers treats every pass as a first
    one and uses the given position ids and the registered mask.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values as they are."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0, as before a first pass."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return 0, as before a first pass."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the length of the sequence, and 0 positions before it."""
        return int(query_length), 0


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    running = running_pass.get()
    assert running is not None, "this attention can only be used in a packed pass"
    _refuse_other_attention(module, attention_mask, options)
    scaling = options.get("scaling")
    scoring = Scoring(
        query.shape[-1] ** -0.5 if scaling is None else scaling, options.get("softcap"), options.get("s_aux")
    )
    return running.attend(module.layer_idx, query[0], key[0], value[0], attention_mask, scoring)[None], None


def _refuse_other_attention(module: Any, attention_mask: Any, options: Mapping[str, Any]) -> None:
    """Refuse attention that needs more than this one computes; ignoring an argument would give other numbers."""
    name = type(module).__name__
    if not isinstance(attention_mask, Rule):
        raise UnitError(f"{name} makes an attention mask of its own.", code="other_attention")
    given = {name for name, value in options.items() if value is not None and value is not False}
    unknown = sorted(given - _HONOURED - _WITHOUT_EFFECT)
    if unknown or options.get("is_causal") is False:
        raise UnitError(
            f"{name} asks its attention for {', '.join(unknown) or 'is_causal=False'}.", code="other_attention"
        )


def _rule(
    *, mask_function: Callable[..., torch.Tensor], local_size: int | None = None, use_vmap: bool = False, **_: Any
) -> Rule:
    running = running_pass.get()
    assert running is not None, "this mask can only be used in a packed pass"
    if mask_function is causal_mask_function:
        return running.rule_of(mask_function, None)
    # ``use_vmap`` means that the model has added a rule of its own to the window.
    return running.rule_of(mask_function, 0 if use_vmap or local_size is None else local_size)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _rule)


@contextmanager
def plain_attention(model: Any, name: str) -> Iterator[None]:
    """Switch a model to an attention implementation of transformers within the context.

    Args:
        model: The model; it is switched back afterwards.
        name: Name of the implementation, such as ``sdpa``.
    """
    before = model.config._attn_implementation
    if before == name:
        # A family without the attention interface cannot be switched, and would log a warning.
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
