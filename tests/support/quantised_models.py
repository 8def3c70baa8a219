"""Small random models whose weights are quantised by hand in the formats of published checkpoints, and plain twins.

The twin has the weights that the quantised ones stand for: a plain pass over it is what the quantised model computes.
Axes: N output features, K input features, G groups of input features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUP = 32
"""Input features that share a scale."""

_AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring output features each four bits of an AWQ word hold, from the lowest."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """A linear layer's weight in one format.

    Attributes:
        tensors: The tensors of the checkpoint, by the last part of their names.
        plain_NK: The weight that they stand for.
    """

    tensors: dict[str, Any]
    plain_NK: Any


def _in_four_bits(weight_NK: Any, *, is_symmetric: bool) -> tuple[Any, Any, Any]:
    """Round a weight to 0..15 in groups; return the numbers (N, K), scales (N, G) and zero points (N, G)."""
    import torch

    grouped_NGI = weight_NK.reshape(weight_NK.shape[0], -1, GROUP)
    if is_symmetric:
        scale_NG = grouped_NGI.abs().amax(2) / 7
        zero_NG = torch.full_like(scale_NG, 8)
    else:
        low, high = grouped_NGI.amin(2).clamp(max=0), grouped_NGI.amax(2).clamp(min=0)
        scale_NG = (high - low) / 15
        zero_NG = (-low / scale_NG).round()
    # Scales are stored in 16 bits.
    scale_NG = scale_NG.half().float()
    numbers_NGI = (grouped_NGI / scale_NG[..., None] + zero_NG[..., None]).round().clamp(0, 15)
    return numbers_NGI.reshape(weight_NK.shape).int(), scale_NG, zero_NG.int()


def _plain(numbers_NK: Any, scale_NG: Any, zero_NG: Any) -> Any:
    spread = {"repeats": GROUP, "dim": 1}
    return (numbers_NK - zero_NG.repeat_interleave(**spread)) * scale_NG.repeat_interleave(**spread)


def _packed(numbers: Any, places: tuple[int, ...] = tuple(range(8))) -> Any:
    """Pack eight neighbours of the last axis into one word of 32 bits."""
    import torch

    words = torch.zeros((*numbers.shape[:-1], numbers.shape[-1] // 8), dtype=torch.int64)
    for bit, place in enumerate(places):
        words |= numbers[..., place::8].long() << (4 * bit)
    # The highest bit is the sign of a 32-bit integer.
    return torch.where(words >= 2**31, words - 2**32, words).int().contiguous()


def awq(weight_NK: Any) -> Quantised:
    """AutoAWQ's ``gemm`` version: four bits with zero points, packed along the output features."""
    numbers_NK, scale_NG, zero_NG = _in_four_bits(weight_NK, is_symmetric=False)
    tensors = {
        "qweight": _packed(numbers_NK.T, _AWQ_NIBBLES),
        "qzeros": _packed(zero_NG.T, _AWQ_NIBBLES),
        "scales": scale_NG.T.half().contiguous(),
    }
    return Quantised(tensors, _plain(numbers_NK, scale_NG, zero_NG))


def gptq(weight_NK: Any) -> Quantised:
    """AutoGPTQ's first format: four bits, packed along the input features; one less than the zero point is stored."""
    import torch

    numbers_NK, scale_NG, zero_NG = _in_four_bits(weight_NK, is_symmetric=True)
    tensors = {
        "qweight": _packed(numbers_NK).T.contiguous(),
        "qzeros": _packed(zero_NG.T - 1),
        "scales": scale_NG.T.half().contiguous(),
        "g_idx": torch.arange(weight_NK.shape[1], dtype=torch.int32) // GROUP,
    }
    return Quantised(tensors, _plain(numbers_NK, scale_NG, zero_NG))


def pack_quantized(weight_NK: Any) -> Quantised:
    """compressed-tensors' ``pack-quantized`` format, four bits, symmetric."""
    import torch

    numbers_NK, scale_NG, zero_NG = _in_four_bits(weight_NK, is_symmetric=True)
    tensors = {
        "weight_packed": _packed(numbers_NK),
        "weight_scale": scale_NG.half(),
        "weight_shape": torch.tensor(weight_NK.shape),
    }
    return Quantised(tensors, _plain(numbers_NK, scale_NG, zero_NG))


def int_quantized(weight_NK: Any) -> Quantised:
    """compressed-tensors' ``int-quantized`` format: eight bits, a scale for each output feature."""
    scale_N1 = (weight_NK.abs().amax(1, keepdim=True) / 127).half().float()
    numbers_NK = (weight_NK / scale_N1).round().clamp(-127, 127)
    return Quantised({"weight": numbers_NK.char(), "weight_scale": scale_N1}, numbers_NK * scale_N1)


def float_quantized(weight_NK: Any) -> Quantised:
    """compressed-tensors' ``float-quantized`` format: 8-bit floats, a scale for each output feature."""
    import torch

    scale_N1 = (weight_NK.abs().amax(1, keepdim=True) / 448).half().float()
    numbers_NK = (weight_NK / scale_N1).to(torch.float8_e4m3fn)
    return Quantised({"weight": numbers_NK, "weight_scale": scale_N1}, numbers_NK.float() * scale_N1)


def _compressed(layout: str, bits: int, kind: str, strategy: str, inputs: dict[str, Any] | None) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False}
    weights |= {"group_size": GROUP} if strategy == "group" else {}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _per_token(bits: int, kind: str) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}


FORMATS: dict[str, tuple[Callable[[Any], Quantised], dict[str, Any]]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "gptq": (
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True, "lm_head": False},
    ),
    "pack-quantized": (pack_quantized, _compressed("pack-quantized", 4, "int", "group", None)),
    "int-quantized": (int_quantized, _compressed("int-quantized", 8, "int", "channel", _per_token(8, "int"))),
    "float-quantized": (
        float_quantized,
        _compressed("float-quantized", 8, "float", "channel", _per_token(8, "float")),
    ),
}
"""How a weight is quantised and what ``quantization_config`` says, by format."""


def save_quantised(plain: Path, directory: Path, layout: str, dtype: str = "bfloat16") -> Path:
    """Quantise the linear layers of a saved model, and give the model itself the weights that they stand for.

    Args:
        plain: Directory of a model; its weights are replaced.
        directory: Where the quantised model is saved.
        layout: Name of a format.
        dtype: Type that the configuration of the quantised model declares.
    """
    import shutil

    from safetensors.torch import load_file, save_file

    quantise, settings = FORMATS[layout]
    shutil.copytree(plain, directory, dirs_exist_ok=True)
    weights = load_file(plain / "model.safetensors")
    packed: dict[str, Any] = {}
    for name, value in weights.items():
        if not name.endswith("_proj.weight"):
            packed[name] = value
            continue
        quantised = quantise(value.float())
        packed |= {f"{name.removesuffix('weight')}{last}": tensor for last, tensor in quantised.tensors.items()}
        weights[name] = quantised.plain_NK.float().contiguous()
    save_file(packed, directory / "model.safetensors", {"format": "pt"})
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config |= {"quantization_config": settings, "dtype": dtype}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
