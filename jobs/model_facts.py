"""What is known of a model without loading it. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's sizes, type and identity.

    Attributes:
        n_layers: Decoder layers.
        d_model: Width of the residual stream.
        num_parameters: Parameters in all.
        kv_values_per_token: Values that one token adds to the KV cache, all layers together.
        dtype: The checkpoint's own parameter type.
        family: ``model_type`` of its configuration.
        max_context: Longest sequence it takes, in tokens.
        fingerprint: SHA-256 over its configuration, tokenizer and weight files' headers; empty where the files were not
            read, and then nothing can be run, only planned.
    """

    n_layers: int
    d_model: int
    num_parameters: int
    kv_values_per_token: int
    dtype: str
    family: str
    max_context: int
    fingerprint: str
