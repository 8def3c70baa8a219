"""Small random models whose texts cannot share a pass, or only by a rule of their own, with weights like those of
``tiny_families``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiny_families import D_MODEL, N_LAYERS, SHAPE, STOP_IDS, VOCABULARY

LONGROPE_BORDER = 60
MAX_CONTEXT = int(SHAPE["max_position_embeddings"])

_TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": STOP_IDS,
    "pad_token_id": 0,
}
_GPT: dict[str, Any] = _TOKENS | {
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "n_positions": MAX_CONTEXT,
    "initializer_range": 0.2,
}
_FALCON: dict[str, Any] = _TOKENS | {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_CONTEXT,
    "initializer_range": 0.2,
}
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "original_max_position_embeddings": LONGROPE_BORDER,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
_MAMBA: dict[str, Any] = _TOKENS | {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "initializer_range": 0.2}


def _bloom() -> Any:
    from transformers import BloomConfig

    return BloomConfig(**_TOKENS, hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=4, initializer_range=0.2)


def _falcon() -> Any:
    from transformers import FalconConfig

    return FalconConfig(**_FALCON, alibi=False)


def _falcon_alibi() -> Any:
    from transformers import FalconConfig

    return FalconConfig(**_FALCON, alibi=True)


def _mpt() -> Any:
    from transformers import MptConfig

    own: dict[str, Any] = {"d_model": D_MODEL, "n_heads": 4, "n_layers": N_LAYERS, "max_seq_len": MAX_CONTEXT}
    return MptConfig(**_TOKENS, **own, initializer_range=0.2)


def _gptj() -> Any:
    from transformers import GPTJConfig

    return GPTJConfig(**_GPT, rotary_dim=4)


def _codegen() -> Any:
    from transformers import CodeGenConfig

    return CodeGenConfig(**_GPT, rotary_dim=4)


def _openai_gpt() -> Any:
    from transformers import OpenAIGPTConfig

    return OpenAIGPTConfig(**_GPT)


def _gpt_neo() -> Any:
    from transformers import GPTNeoConfig

    own: dict[str, Any] = {"hidden_size": D_MODEL, "num_layers": N_LAYERS, "num_heads": 4, "window_size": 16}
    attention: Any = [[["global", "local"], N_LAYERS // 2]]
    lengths: dict[str, Any] = {"max_position_embeddings": MAX_CONTEXT, "initializer_range": 0.2}
    return GPTNeoConfig(**_TOKENS, **own, **lengths, attention_types=attention)


def _xglm() -> Any:
    from transformers import XGLMConfig

    own: dict[str, Any] = {"d_model": D_MODEL, "num_layers": N_LAYERS, "attention_heads": 4, "ffn_dim": 48}
    return XGLMConfig(**_TOKENS, **own, max_position_embeddings=MAX_CONTEXT, init_std=0.2)


def _gpt_oss() -> Any:
    from transformers import GptOssConfig

    own: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16}
    return GptOssConfig(**SHAPE, **own, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


def _llama4() -> Any:
    from transformers import Llama4TextConfig

    experts: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
    own: dict[str, Any] = {"intermediate_size_mlp": 48, "head_dim": 16, "attention_chunk_size": 16}
    return Llama4TextConfig(**SHAPE, **experts, **own)


def _phi3_longrope() -> Any:
    from transformers import Phi3Config

    border: dict[str, Any] = {"original_max_position_embeddings": LONGROPE_BORDER}
    return Phi3Config(**SHAPE, **border, rope_parameters=_LONGROPE | {"rope_theta": 10000.0})


def _phimoe_longrope() -> Any:
    from transformers import PhimoeConfig

    own: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
    rope: Any = _LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3, "rope_theta": 10000.0}
    return PhimoeConfig(**SHAPE, **own, rope_parameters=rope)


def _llama_dynamic() -> Any:
    from transformers import LlamaConfig

    rope: Any = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    shape: dict[str, Any] = SHAPE | {"max_position_embeddings": 128}
    return LlamaConfig(**shape, rope_parameters=rope)


def _mamba() -> Any:
    from transformers import MambaConfig

    return MambaConfig(**_MAMBA, state_size=4)


def _mamba2() -> Any:
    from transformers import Mamba2Config

    return Mamba2Config(**_MAMBA, state_size=4, num_heads=4, head_dim=16, n_groups=2, chunk_size=8)


def _rwkv() -> Any:
    from transformers import RwkvConfig

    return RwkvConfig(**_TOKENS, hidden_size=D_MODEL, num_hidden_layers=N_LAYERS, context_length=MAX_CONTEXT)


def _xlstm() -> Any:
    from transformers import xLSTMConfig

    own: dict[str, Any] = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_heads": 4}
    return xLSTMConfig(**_TOKENS, **own, qk_dim_factor=1.0, v_dim_factor=1.0)


def _doge() -> Any:
    from transformers import DogeConfig

    return DogeConfig(**SHAPE)


def _lfm2() -> Any:
    from transformers import Lfm2Config

    return Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"] * (N_LAYERS // 2))


def _recurrent_gemma() -> Any:
    from transformers import RecurrentGemmaConfig

    shape: dict[str, Any] = {name: value for name, value in SHAPE.items() if name != "max_position_embeddings"}
    return RecurrentGemmaConfig(**shape, lru_width=D_MODEL, attention_window_size=16)


def _qwen3_next() -> Any:
    from transformers import Qwen3NextConfig

    linear: dict[str, Any] = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    experts: dict[str, Any] = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    }
    kinds = ["linear_attention", "full_attention"] * (N_LAYERS // 2)
    return Qwen3NextConfig(**SHAPE, **linear, **experts, head_dim=16, layer_types=kinds)


def _falcon_h1() -> Any:
    from transformers import FalconH1Config

    own: dict[str, Any] = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
    return FalconH1Config(**SHAPE, **own, mamba_chunk_size=8)


ALONE_FAMILIES: dict[str, Callable[[], Any]] = {
    "bloom": _bloom,
    "falcon": _falcon,
    "falcon_alibi": _falcon_alibi,
    "mpt": _mpt,
    "gptj": _gptj,
    "codegen": _codegen,
    "openai_gpt": _openai_gpt,
    "gpt_neo": _gpt_neo,
    "xglm": _xglm,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "rwkv": _rwkv,
    "xlstm": _xlstm,
    "doge": _doge,
    "lfm2": _lfm2,
    "recurrent_gemma": _recurrent_gemma,
    "qwen3_next": _qwen3_next,
    "falcon_h1": _falcon_h1,
}
"""Every text has a forward pass of its own."""

LONGROPE_FAMILIES: dict[str, Callable[[], Any]] = {"phi3": _phi3_longrope, "phimoe": _phimoe_longrope}
"""Texts of more than ``LONGROPE_BORDER`` tokens have one."""

SHARING_FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt_oss": _gpt_oss,
    "llama4": _llama4,
    "llama_dynamic": _llama_dynamic,
}
"""All texts share passes."""
