"""Checkpoints whose weights are quantised: which can be run, from what they are restored, and how to load them.

The built-in engine computes with plain weights. Checkpoints in blocks of 8-bit floats (``fp8``) and in ``mxfp4`` are
restored to plain weights when they are loaded, without a GPU or another library, and need the memory of plain weights.
All others stay packed and need a library of their own. vLLM brings what it needs for those that ``jobs/vllm`` lists;
which engine runs a job is decided there. What neither engine runs is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ....jobs.vllm.quantizations import RESTORED_QUANTIZATIONS, VLLM_QUANTIZATIONS
from .architecture import auto_model_class
from .problems import Problem, refuse
from .weight_files import DTYPES

RESTORED = {"fp8": "FineGrainedFP8Config", "mxfp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Quantisations that are restored to plain weights while loading, with their classes in transformers."""

_LIBRARIES = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
    "auto-round": "auto-round",
    "torchao": "torchao",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "modelopt": "nvidia-modelopt",
}
_CODE = "quantised"
_HINT = (
    "Name the checkpoint before quantisation{base}, in bfloat16 or float16, or restore plain weights{library} first."
)


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the quantisation that a checkpoint's ``config.json`` declares; None for plain weights.

    Args:
        config: The content of ``config.json``; of a multimodal model, its text section counts too.
    """
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, Mapping) else {}):
        # MLX writes its own section beside, or instead of, the one of transformers.
        for key in ("quantization_config", "compression_config", "quantization"):
            if holder.get(key):
                return dict(holder[key]) if isinstance(holder[key], Mapping) else {"quant_method": str(holder[key])}
    return None


def method_of(quantization: Mapping[str, Any]) -> str:
    """Return the name of a quantisation's method, such as ``gptq`` or ``fp8``; ``unknown`` if it is not declared.

    Args:
        quantization: The quantisation, as ``quantization_of`` returns it.
    """
    if quantization.get("quant_method"):
        return str(quantization["quant_method"])
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"
    return "mlx" if "group_size" in quantization and "bits" in quantization else "unknown"


def quantization_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Find a quantisation that no engine can run.

    Args:
        config: The content of ``config.json``.
    """
    quantization = quantization_of(config)
    if quantization is None or method_of(quantization) in RESTORED_QUANTIZATIONS | VLLM_QUANTIZATIONS.keys():
        return []
    return [_declared_problem(quantization)]


def _declared_problem(quantization: Mapping[str, Any]) -> Problem:
    method = method_of(quantization)
    bits = quantization.get("bits") or quantization.get("w_bit") or (4 if quantization.get("load_in_4bit") else None)
    bits = bits or (8 if quantization.get("load_in_8bit") else None)
    return _problem(f"config.json: the weights are quantised with {method}{f' in {bits} bits' if bits else ''}", method)


def packed_problems(tensors: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> list[Problem]:
    """Find weights that are packed into integers or 8-bit floats without a quantisation that is known here.

    Args:
        tensors: Entries of safetensors headers by tensor.
        config: The content of ``config.json``.
    """
    if quantization_of(config) is not None:
        return []
    packed = sorted(name for name, entry in tensors.items() if entry["dtype"] not in DTYPES and _is_weight(name))
    if not packed:
        return []
    first = f"{packed[0]} and {len(packed) - 1} more are" if len(packed) > 1 else f"{packed[0]} is"
    return [_problem(f"the weights are packed: {first} of type {tensors[packed[0]]['dtype']}", "unknown")]


def loading_options(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that restore plain weights; empty for plain weights.

    Args:
        config: The content of ``config.json``.
        place: Directory of the checkpoint.

    Raises:
        InputError: The weights cannot be restored.
    """
    quantization = quantization_of(config)
    if quantization is None:
        return {}
    if method_of(quantization) not in RESTORED:
        refuse(place, [_declared_problem(quantization)])
    import transformers

    restored: Any = getattr(transformers, RESTORED[method_of(quantization)])
    return {"quantization_config": restored(dequantize=True)}


def restored_parameters(config: Any) -> int:
    """Count the parameters of a model that is restored to plain weights, from its configuration.

    Args:
        config: The configuration, as ``AutoConfig`` reads it.
    """
    import copy

    import torch

    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    with torch.device("meta"):
        model: Any = auto_model_class(config).from_config(plain, trust_remote_code=False)
    parameters: Iterable[Any] = model.parameters()
    return sum(parameter.numel() for parameter in parameters)


def _is_weight(name: str) -> bool:
    # Old checkpoints keep attention masks and position ids as integers, under names of their own.
    return name.rsplit(".", 1)[-1] in ("weight", "qweight", "weight_packed", "W_q", "weight_int8pack")


def _problem(text: str, method: str) -> Problem:
    library = _LIBRARIES.get(method)
    base = " (its model card links it)"
    return Problem(
        f"{text}, and the built-in engine computes with plain weights",
        _HINT.format(base=base, library=f" with {library}" if library else ""),
        _CODE,
    )
