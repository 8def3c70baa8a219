"""Where in a decoder layer each hook point is, found by arithmetic and not by a family's names.

With ``resid`` the residual stream, decoder layer L does ``resid_mid = resid_pre + attn_out`` and then
``resid_post = resid_mid + mlp_out``:

    resid_pre   the layer's input
    attn_out    what its attention adds to the stream (after a norm of its own, where the family has one)
    resid_mid   the stream between the two, before the MLP's norm
    mlp_out     what its MLP, or mixture of experts, adds
    resid_post  the layer's output, before any final norm

The children of a layer are observed while a few tokens pass; those whose outputs make both sums come out to the last
bit are the hook points. A layer without such children (attention and MLP side by side, scaled branches) is refused by
name: there the words would mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ...jobs.errors import InputError
from ...jobs.spec import HookPoint


@dataclass(frozen=True, slots=True)
class Tap:
    """One place to observe: the input or the output of a module.

    Attributes:
        module: Which module.
        of_input: True for its input, False for its output.
    """

    module: nn.Module
    of_input: bool

    def attach(self, observe: Callable[[torch.Tensor], None]) -> Any:
        """Call a function with every tensor that passes.

        Args:
            observe: Called during the forward pass; must not change the tensor.

        Returns:
            A handle whose ``remove`` ends it.
        """
        if self.of_input:
            return self.module.register_forward_pre_hook(
                lambda _module, args, named: observe(_first_tensor(args, named)), with_kwargs=True
            )
        return self.module.register_forward_hook(lambda _module, _args, output: observe(tensor_of(output)))


def find_decoder_layers(model: nn.Module, num_layers: int) -> list[nn.Module]:
    """Find a model's decoder layers: the one list of modules with a module for every layer.

    Args:
        model: A causal language model.
        num_layers: How many it has, by its configuration.

    Raises:
        InputError: There is no such list, or more than one.
    """
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    # In a mixture of experts the list of experts may be as long; the decoder layers hold it, never the other way.
    outer = [m for m in found if not any(m is not other and _holds(other, m) for other in found)]
    if len(outer) != 1:
        raise InputError(
            f"the decoder layers of a {type(model).__name__} cannot be found: {len(outer)} lists of {num_layers} "
            "modules.",
            code="unknown_model",
            field="model.source",
            hint="This model family is not supported yet.",
        )
    return list(outer[0])


def find_taps(
    decoder_layers: Sequence[nn.Module],
    layers: Sequence[int],
    points: Sequence[HookPoint],
    run_probe: Callable[[], object],
) -> dict[HookPoint, list[Tap]]:
    """Find the places of hook points.

    Args:
        decoder_layers: All of the model's, in order.
        layers: Which of them are captured, 0-based.
        points: Which places in them.
        run_probe: Runs a few tokens through the model; called where a place has to be found inside a layer.

    Returns:
        For every point one place per layer, in the order of ``layers``.

    Raises:
        InputError: A layer has no such place; names the point and the layer.
    """
    inner = [point for point in points if point not in ("resid_pre", "resid_post")]
    found = _probe(decoder_layers, layers, run_probe) if inner else {}
    for layer, places in found.items():
        if places is None:
            raise InputError(
                f"{', '.join(inner)} cannot be found in decoder layer {layer}, a {type(decoder_layers[layer]).__name__}"
                ": no parts of it add up to resid_mid = resid_pre + attn_out and resid_post = resid_mid + mlp_out.",
                code="no_hook_point",
                field="capture.hook_points",
                hint="Choose resid_pre or resid_post, which every family has.",
            )
    ends: dict[HookPoint, bool] = {"resid_pre": True, "resid_post": False}
    return {
        point: [
            Tap(decoder_layers[layer], of_input=ends[point]) if point in ends else (found[layer] or {})[point]
            for layer in layers
        ]
        for point in points
    }


def _probe(
    decoder_layers: Sequence[nn.Module], layers: Sequence[int], run_probe: Callable[[], object]
) -> dict[int, dict[HookPoint, Tap] | None]:
    """Run a probe with every module of these layers observed; None where a layer has no such places."""
    probed = {layer: _ProbedLayer(decoder_layers[layer]) for layer in layers}
    handles = [handle for one in probed.values() for handle in one.observe()]
    try:
        run_probe()
    finally:
        for handle in handles:
            handle.remove()
    return {layer: one.places() for layer, one in probed.items()}


@dataclass
class _ProbedLayer:
    """Inputs and outputs of one decoder layer and its children, as the probe ran through them."""

    layer: nn.Module
    inputs: dict[nn.Module, torch.Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, torch.Tensor] = field(default_factory=dict)

    def observe(self) -> list[Any]:
        handles: list[Any] = []
        for module in (self.layer, *self.layer.children()):
            handles.append(Tap(module, of_input=True).attach(partial(self.inputs.__setitem__, module)))
            handles.append(Tap(module, of_input=False).attach(partial(self.outputs.__setitem__, module)))
        return handles

    def places(self) -> dict[HookPoint, Tap] | None:
        pre, post = self.inputs[self.layer], self.outputs[self.layer]
        children = [m for m in self.outputs if m is not self.layer and self.outputs[m].shape == pre.shape]
        # The MLP's norm takes in the stream between attention and MLP, whatever it is called: try each child for it.
        for middle in children:
            mid = self.inputs[middle]
            # The sums are the model's own operations: equal to the last bit, or something else.
            attention = [m for m in children if _adds_up(pre, self.outputs[m], mid)]
            mlp = [m for m in children if _adds_up(mid, self.outputs[m], post)]
            if attention and mlp:
                return {
                    "resid_mid": Tap(middle, of_input=True),
                    "attn_out": Tap(attention[0], of_input=False),
                    "mlp_out": Tap(mlp[0], of_input=False),
                }
        return None


def _adds_up(before: torch.Tensor, added: torch.Tensor, after: torch.Tensor) -> bool:
    return after.shape == before.shape and torch.equal(before + added, after) and bool(added.any())


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


def tensor_of(output: Any) -> torch.Tensor:
    """Take the stream out of what a module returns: some decoder layers return it alone, others in a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def _first_tensor(args: Any, named: Any) -> torch.Tensor:
    return next(value for value in (*args, *named.values()) if isinstance(value, torch.Tensor))
