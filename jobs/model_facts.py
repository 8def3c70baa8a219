"""Sizes and identity of a model, known without loading it. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

_NOT_KEPT = Field(exclude=True)
"""Left out of the run's record, which has what identifies a run; all of this is in the model's configuration."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's sizes, type and identity.

    Attributes:
        n_layers: Decoder layers.
        d_model: Width of the residual stream.
        num_parameters: Number of parameters.
        kv_values_per_token: Values that one token adds to the KV cache, over all layers.
        dtype: Parameter type of the checkpoint.
        family: ``model_type`` of its configuration.
        max_context: Longest sequence it takes, in tokens.
        fingerprint: SHA-256 over its configuration, tokenizer and samples of its weight files; empty if the files were
            not read, which is enough to plan a job but not to run it.
        chat_template_sha256: SHA-256 of a chat template that the spec gives; empty where the model's own is used.
        architectures: ``architectures`` of its configuration; empty if it names none. This and the following are
            read where a job is planned; no record keeps them, and facts with other ones are equal.
        num_attention_heads: Query heads of a decoder layer; 0 if unknown.
        num_kv_heads: Key-value heads of a decoder layer; 0 if unknown.
        mlp_width: Inner width of an MLP, or of one expert of a mixture; 0 if unknown.
        has_adapter: Whether an adapter is to be merged into its weights.
        quantization: Method with which its weights are quantised, as its configuration names it; empty for plain ones.
        quantized_bytes: Bytes of the checkpoint's tensors where its weights are quantised; 0 for plain ones.
        other_layers: Kinds of its decoder layers that are not attention, such as ``linear_attention``, as its
            configuration names them; empty if it names none.
        layer_parameters: Parameters of the largest decoder layer; 0 if unknown.
        outside_parameters: Parameters outside of the decoder layers: embeddings, LM head and final norm; 0 if unknown.
    """

    n_layers: int
    d_model: int
    num_parameters: int
    kv_values_per_token: int
    dtype: str
    family: str
    max_context: int
    fingerprint: str
    chat_template_sha256: str = ""
    architectures: Annotated[tuple[str, ...], _NOT_KEPT] = field(default=(), compare=False)
    num_attention_heads: Annotated[int, _NOT_KEPT] = field(default=0, compare=False)
    num_kv_heads: Annotated[int, _NOT_KEPT] = field(default=0, compare=False)
    mlp_width: Annotated[int, _NOT_KEPT] = field(default=0, compare=False)
    has_adapter: Annotated[bool, _NOT_KEPT] = field(default=False, compare=False)
    quantization: Annotated[str, _NOT_KEPT] = field(default="", compare=False)
    quantized_bytes: Annotated[int, _NOT_KEPT] = field(default=0, compare=False)
    other_layers: Annotated[tuple[str, ...], _NOT_KEPT] = field(default=(), compare=False)
    layer_parameters: Annotated[int, _NOT_KEPT] = field(default=0, compare=False)
    outside_parameters: Annotated[int, _NOT_KEPT] = field(default=0, compare=False)
