"""Small random models of the families that vLLM captures, in shapes that its CPU kernels know: 32 values a head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_families import N_LAYERS, SHAPE, save_tiny_model

D_MODEL = 128

_SHAPE: dict[str, Any] = SHAPE | {"hidden_size": D_MODEL, "intermediate_size": 96, "initializer_range": 0.1}


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_SHAPE)


def _qwen2() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**_SHAPE)


def _qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**_SHAPE, head_dim=32)


def _qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig

    own: dict[str, Any] = {"head_dim": 32, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeConfig(**_SHAPE, **own, norm_topk_prob=True)


def _mistral() -> Any:
    from transformers import MistralConfig

    return MistralConfig(**_SHAPE, sliding_window=16)


def _gemma2() -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(**_SHAPE, head_dim=32, sliding_window=16, query_pre_attn_scalar=32)


def _gemma3() -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(**_SHAPE, head_dim=32, sliding_window=16, query_pre_attn_scalar=32)


def _gpt_oss() -> Any:
    from transformers import GptOssConfig

    own: dict[str, Any] = {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}
    return GptOssConfig(**_SHAPE | own)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt_oss": _gpt_oss,
}


def save_vllm_family(directory: Path, family: str, **other: Any) -> Path:
    """Save a random model of a family: 4 layers, d_model 128; the same weights every time.

    Keywords replace values of its configuration.
    """
    config = FAMILIES[family]()
    for name, value in other.items():
        assert hasattr(config, name), name
        setattr(config, name, value)
    assert config.num_hidden_layers == N_LAYERS
    return save_tiny_model(directory, config)
