"""Build a model without the weights of its decoder layers: they stay on torch's meta device, where they take no memory.

What lies outside of the layers and is needed to read texts (embeddings, the final norm, rotary frequencies) is loaded.
The LM head is not: no logits are needed, and of a large vocabulary it is as large as the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ....jobs.errors import InputError
from ....jobs.machine_faults import refuse_machine_fault
from ...models.checkpoints.architecture import auto_model_class
from ...models.checkpoints.checkpoint import ADAPTER_FOLDER, open_checkpoint
from ...models.checkpoints.quantization import method_of, quantization_of
from ...models.hook_points import find_decoder_layers
from ...own_code import refuse_own_code
from ..loaded_model import attention_options, stays_float32
from .files import MappedFiles, TensorSource
from .weights import Recipe, by_layer, recipes_of, require_all

_LARGE_VALUES = 2**16
"""Values from which a tensor without values is made on the meta device from the start."""


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """A parameter of a model and the modules that hold it.

    Attributes:
        empty: The parameter on the meta device, which tells shape and type.
        owners: Each module that has it, with its name there.
    """

    empty: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]

    def put(self, value: nn.Parameter) -> None:
        """Give the modules another value.

        Args:
            value: The value; ``empty`` to take the weights away.
        """
        for module, name in self.owners:
            setattr(module, name, value)


@dataclass(frozen=True, eq=False, slots=True)
class Skeleton:
    """A model without the weights of its decoder layers, and where these are.

    Attributes:
        model: The model; everything but its layers is on the device.
        layers: Its decoder layers.
        places: The parameters of all layers by name.
        recipes: For each layer, how its parameters are made.
        source: The tensors that they are made of.
        resident_bytes: Bytes of what was loaded.
    """

    model: Any
    layers: tuple[nn.Module, ...]
    places: dict[str, Place]
    recipes: tuple[list[Recipe], ...]
    source: TensorSource
    resident_bytes: int

    def layer_bytes(self, layer: int) -> int:
        """Return the bytes of the parameters of a layer.

        Args:
            layer: 0-based decoder layer.
        """
        return sum(self.places[name].empty.nbytes for recipe in self.recipes[layer] for name in recipe.targets)


def open_skeleton(directory: Path, dtype: str, device: str) -> Skeleton:
    """Build the model of a checkpoint without the weights of its layers.

    Args:
        directory: The checkpoint.
        dtype: Type of the parameters.
        device: ``cpu`` or ``cuda``.

    Raises:
        InputError: The model cannot be built or its weights cannot be loaded layer by layer: an adapter is to be merged
            into them, they are quantised, or some are missing.
    """
    checkpoint = open_checkpoint(directory)
    if (directory / ADAPTER_FOLDER).is_dir():
        raise _unstreamable("an adapter is merged into all weights at once", "Merge it and save the model first")
    quantization = quantization_of(checkpoint.raw)
    if quantization is not None:
        what = f"weights that are quantised with {method_of(quantization)} are restored all at once"
        raise _unstreamable(what, "Restore plain weights and save them first")
    config = checkpoint.config
    try:
        with parameters_on_meta():
            model = auto_model_class(config).from_config(
                config, dtype=getattr(torch, dtype), trust_remote_code=False, **attention_options(config)
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        refuse_machine_fault(error)
        refuse_own_code(directory, error)
        raise InputError(
            f"the model in {directory} cannot be built: {str(error).strip().splitlines()[0]}",
            code="model_not_loaded",
            field="model.source",
            hint="Check its files, or choose another model.",
        ) from error
    return make_skeleton(model, MappedFiles(directory, checkpoint.weights.names), device, str(directory))


def make_skeleton(model: Any, source: TensorSource, device: str, place: str) -> Skeleton:
    """Load what lies outside of the decoder layers of a model.

    Args:
        model: A causal language model whose parameters are on the meta device.
        source: The tensors of its checkpoint.
        device: ``cpu`` or ``cuda``.
        place: The checkpoint, for messages.

    Raises:
        InputError: A tensor is missing, or the decoder layers cannot be found.
    """
    model.eval()
    _leave_out_head(model)
    layers = tuple(find_decoder_layers(model, int(model.config.get_text_config().num_hidden_layers)))
    for name, parameter in model.named_parameters():
        if stays_float32(model, name, model.dtype):
            parameter.data = parameter.data.to(torch.float32)
    paths = {module: name for name, module in model.named_modules()}
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise _unstreamable(f"{name} of a {type(model).__name__} is made without values", "Choose another family")
    layer_of = {
        f"{paths[layer]}.{name}": number for number, layer in enumerate(layers) for name, _ in layer.named_parameters()
    }
    decoder: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = f"{paths[decoder]}." if paths[decoder] else ""
    places = {name: place for name, place in _places(model).items() if name.startswith(inside)}
    recipes = recipes_of(model, source)
    require_all(recipes, places, place)
    grouped = by_layer(recipes, layer_of)
    resident = {name: one for name, one in places.items() if name not in layer_of}
    loaded = _load_resident(model, grouped.get(None, []), resident, source, device)
    by_number = tuple(grouped.get(number, []) for number in range(len(layers)))
    return Skeleton(model, layers, {name: places[name] for name in layer_of}, by_number, source, loaded)


def _unstreamable(why: str, fix: str) -> InputError:
    return InputError(
        f"is streamed, but {why}, so the model cannot be loaded layer by layer.",
        code="not_streamed",
        field="placement.weights",
        hint=f"{fix}, or set placement.weights to resident, which needs the memory for all weights.",
    )


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Put every parameter that a module registers on the meta device; buffers get their values as always."""
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is there already is tied to another module's, and must stay the same object.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta
    try:
        with _EmptyOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register


class _EmptyOnMeta(TorchFunctionMode):
    """Makes large tensors without values on the meta device.

    They are parameters before they are registered. On the CPU they would be freed at once, but leave holes behind that
    a limit of the process counts.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.empty and named.get("device") is None:
            shape = named.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            if math.prod(shape) >= _LARGE_VALUES:
                named = named | {"device": "meta"}
        return func(*args, **named)


class _NoHead(nn.Module):
    """Takes the place of an LM head, and returns the states that it is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        # Some families ask it for the type of their logits.
        self.weight = torch.empty(0, dtype=dtype)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states


def _leave_out_head(model: Any) -> None:
    """Replace the LM head by a module that returns the states it is given."""
    head = model.get_output_embeddings()
    if head is None:
        return
    for module in model.modules():
        for name, child in module.named_children():
            if child is head:
                setattr(module, name, _NoHead(model.dtype))


def _places(model: Any) -> dict[str, Place]:
    """Find every parameter of a model by name, with all modules that have it."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append((module, name))
    return {name: Place(parameter, tuple(owners[parameter])) for name, parameter in model.named_parameters()}


def _load_resident(
    model: Any, recipes: list[Recipe], places: dict[str, Place], source: TensorSource, device: str
) -> int:
    """Load parameters and stored buffers, and move all buffers to the device; return the bytes of all of them."""
    buffers = dict(model.named_buffers())
    for recipe in recipes:
        if not any(name in places or name in buffers for name in recipe.targets):
            continue
        for name, value in recipe.make([source.tensor(one) for one in recipe.tensors], model):
            if name in buffers:
                buffers[name].copy_(value)
            elif name in places:
                empty = places[name].empty
                # A copy: a view of the file would be read anew where the page cache is short of room.
                made = torch.empty(empty.shape, dtype=empty.dtype, device=device).copy_(value)
                places[name].put(nn.Parameter(made, requires_grad=False))
        source.let_go(recipe.tensors)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return sum(place.empty.nbytes for place in places.values()) + sum(buffer.nbytes for buffer in buffers.values())
