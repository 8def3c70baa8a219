"""Check a model's architecture from its configuration alone: no weights are read, and none are made at its size.

The model is built on torch's meta device, where parameters have shapes and no values. Hook points inside of a decoder
layer are found by arithmetic, which needs values: a copy of the model that has two narrow layers stands in for it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch

from ...jobs.errors import InputError
from ...jobs.machine_faults import refuse_machine_fault
from ...jobs.specs.spec_parts import HookPoint
from .checkpoints.architecture import auto_model_class, text_config
from .hook_points import find_decoder_layers, find_taps

_NARROW = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
"""Sizes of the narrow copy, for the fields that a configuration has."""

_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What a configuration tells about its model.

    Attributes:
        model_class: Class of transformers that the model is.
        decoder_layer: Class of its decoder layers.
        n_layers: Number of decoder layers that were found.
        num_parameters: Number of parameters, counted on the meta device.
        hook_points: Hook points that its decoder layers have; None where that is only known when it is loaded.
    """

    model_class: str
    decoder_layer: str
    n_layers: int
    num_parameters: int
    hook_points: tuple[HookPoint, ...] | None


def config_of(values: dict[str, Any]) -> Any:
    """Make transformers' configuration from the fields of a ``config.json``.

    Args:
        values: The fields, with ``model_type``.
    """
    from transformers import AutoConfig

    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def check_model(config: Any) -> ModelCheck:
    """Build a model from its configuration, and find its decoder layers and hook points.

    Args:
        config: The configuration, as transformers reads it.

    Raises:
        InputError: transformers cannot build it, or its decoder layers cannot be found.
    """
    with torch.device("meta"):
        model = _built(config)
    decoder_layers = find_decoder_layers(model, int(text_config(config).num_hidden_layers))
    return ModelCheck(
        model_class=type(model).__name__,
        decoder_layer=type(decoder_layers[0]).__name__,
        n_layers=len(decoder_layers),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        hook_points=_hook_points(config),
    )


def _built(config: Any) -> Any:
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    try:
        model: Any = auto_model_class(config).from_config(plain, trust_remote_code=False)
        return model
    # What a model's own class raises on sizes that do not go together is of many types.
    except Exception as error:
        refuse_machine_fault(error)
        raise InputError(
            f"transformers cannot build a {config.model_type} model of this configuration: "
            f"{(str(error).strip() or repr(error)).splitlines()[0]}.",
            code="unknown_model",
            field="model.source",
            hint="Check the sizes in config.json, or upgrade transformers.",
        ) from error


def _hook_points(config: Any) -> tuple[HookPoint, ...] | None:
    """Return the hook points of a narrow copy of a model; None where there can be no such copy."""
    if text_config(config) is not config:
        return None
    torch_state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        model = _built(_narrow(config)).eval()
        layers = find_decoder_layers(model, _NARROW["num_hidden_layers"])
        probe = partial(_run, model)
        return tuple(point for point in get_args(HookPoint) if _has(layers, point, probe))
    # Sizes that are not in ``_NARROW`` may not go with its own, and what a family then raises is of many types.
    except Exception as error:  # noqa: BLE001 - the hook points are found when the model is loaded
        refuse_machine_fault(error)
        return None
    finally:
        torch.random.set_rng_state(torch_state)


def _has(layers: list[Any], point: HookPoint, probe: Any) -> bool:
    try:
        find_taps(layers, range(len(layers)), [point], probe)
    except InputError as error:
        if error.code != "no_hook_point":
            raise
        return False
    return True


@torch.inference_mode()
def _run(model: Any) -> None:
    model(input_ids=torch.arange(8)[None])


def _narrow(config: Any) -> Any:
    """Return a configuration of the same family with two narrow layers."""
    values: dict[str, Any] = config.to_dict()
    narrow = {name: size for name, size in _NARROW.items() if values.get(name) is not None}
    kinds = values.get("layer_types")
    if kinds:
        narrow["layer_types"] = kinds[: _NARROW["num_hidden_layers"]]
    kept = {name: value for name, value in values.items() if name not in _TOKENS and name != "quantization_config"}
    return type(config)(**(kept | narrow | dict.fromkeys(_TOKENS)))
