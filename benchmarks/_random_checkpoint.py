"""Saves a random model of a given shape as a checkpoint, layer by layer, so that it may be larger than the memory.

The weights are those of a Llama without grouped queries; the tokenizer is that of the tests.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from _gpu.model import ModelSize, config_of
from tiny_models import save_tokenizer

_DEVIATION = 0.02


def save_random_llama(directory: Path, size: ModelSize) -> Path:
    """Save a checkpoint with a file for every layer.

    Args:
        directory: An empty directory.
        size: Shape of the model.
    """
    config = config_of(size)
    config.update({"architectures": ["LlamaForCausalLM"], "dtype": size.dtype})
    config.save_pretrained(directory)
    save_tokenizer(directory)
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, size.dtype)
    weight_map: dict[str, str] = {}
    for number in range(-1, size.layers):
        shapes = _outside(size) if number < 0 else _layer(size, number)
        file = f"model-{number + 2:05d}-of-{size.layers + 1:05d}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=dtype)
            if len(shape) == 1
            else torch.empty(shape).normal_(0, _DEVIATION, generator=generator).to(dtype)
            for name, shape in shapes.items()
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _outside(size: ModelSize) -> dict[str, tuple[int, ...]]:
    table = (size.vocabulary, size.width)
    return {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": (size.width,)}


def _layer(size: ModelSize, number: int) -> dict[str, tuple[int, ...]]:
    width, inner, keys = size.width, size.mlp_width, size.width // size.heads * size.kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    return {f"model.layers.{number}.{name}.weight": shape for name, shape in shapes.items()}
