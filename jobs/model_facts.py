"""Sizes and identity of a model, known without loading it. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


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
