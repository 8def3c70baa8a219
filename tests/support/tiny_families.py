"""Small random models of several families, with weights so large that a wrong mask or position changes the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_models import END_ID, SPECIAL, save_tokenizer

VOCABULARY = len(SPECIAL) + 256
N_LAYERS = 4
D_MODEL = 32
STOP_IDS = [END_ID, *range(20, 36)]
"""Many tokens end a response, so that random models stop at all lengths."""

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": STOP_IDS,
    "pad_token_id": 0,
}


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPE)


def _qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**SHAPE, head_dim=16)


def _gemma2() -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(**SHAPE, head_dim=16, sliding_window=16, query_pre_attn_scalar=16)


def _gemma3() -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=16, query_pre_attn_scalar=16)


def _mistral() -> Any:
    from transformers import MistralConfig

    return MistralConfig(**SHAPE, sliding_window=16)


def _qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig

    own: dict[str, Any] = {"head_dim": 16, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeConfig(**SHAPE, **own, norm_topk_prob=True)


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=D_MODEL,
        n_inner=48,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=STOP_IDS,
        pad_token_id=0,
    )


_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    # As many layers as the language model, which must not be taken for them.
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def _gemma3_images() -> Any:
    from transformers import Gemma3Config

    text = SHAPE | {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
    return Gemma3Config(text_config=text, vision_config=_VISION, mm_tokens_per_image=4, image_token_index=5)


def _mistral3_images() -> Any:
    from transformers import Mistral3Config

    text = SHAPE | {"model_type": "mistral", "sliding_window": None}
    return Mistral3Config(text_config=text, vision_config=_VISION | {"model_type": "pixtral"}, image_token_index=5)


def _qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": N_LAYERS, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": D_MODEL}
    tokens: dict[str, Any] = {
        "image_token_id": 5,
        "video_token_id": 6,
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
    }
    return Qwen2_5_VLConfig(text_config=SHAPE | {"rope_parameters": rope}, vision_config=vision, **tokens)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mistral": _mistral,
    "qwen3_moe": _qwen3_moe,
    "gpt2": _gpt2,
}


WITH_IMAGES: dict[str, Callable[[], Any]] = {
    "gemma3_images": _gemma3_images,
    "mistral3_images": _mistral3_images,
    "qwen2_5_vl": _qwen2_5_vl,
}
"""Families that also take images, of which the language model is used."""


def save_tiny_family(directory: Path, family: str) -> Path:
    """Save a random model of a family: 4 layers, d_model 32; the same weights every time."""
    return save_tiny_model(directory, (FAMILIES | WITH_IMAGES)[family]())


def save_tiny_model(directory: Path, config: Any) -> Path:
    """Save a random model of a configuration; the same weights every time."""
    import torch

    from plain_forward import model_class

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = model_class(config).from_config(config)
        # Norms and biases are initialised to constants, which would hide a mistake that affects them.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = STOP_IDS
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory
