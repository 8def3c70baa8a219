"""Locate the hook points in a decoder layer by arithmetic, independent of the module names of a model family.

With ``resid`` the residual stream, decoder layer L does ``resid_mid = resid_pre + attn_out`` and then
``resid_post = resid_mid + mlp_out``:

    resid_pre   the layer's input
    attn_out    what attention adds to the stream (after a post-attention norm, where the family has one)
    resid_mid   the stream between attention and MLP, before the MLP's norm
    mlp_out     what the MLP, or mixture of experts, adds
    resid_post  the layer's output, before any final norm

A few tokens are run through the model while the children of each layer are observed. The children whose outputs satisfy
both sums exactly, bit by bit, are attention and MLP. A layer without such children (parallel attention and MLP, scaled
branches) is refused, because these hook points are not defined there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ...jobs.errors import InputError
from ...jobs.specs.spec_parts import HookPoint


@dataclass(frozen=True, slots=True)
class Tap:
    """One place to observe: the input or the output of a module.

    Attributes:
        module: The observed module.
        of_input: Whether to observe its input; else its output.
    """

    module: nn.Module
    of_input: bool

    def attach(self, observe: Callable[[torch.Tensor], None], *, first: bool = False) -> Any:
        """Attach a forward hook.

        Args:
            observe: Called with the tensor during each forward pass; must not change it.
            first: Whether to observe an output before the hooks that are attached already, which may edit it.

        Returns:
            The hook's handle; its ``remove`` detaches the hook.
        """
        if self.of_input:
            return self.module.register_forward_pre_hook(
                lambda _module, args, named: observe(first_tensor(args, named)), with_kwargs=True
            )
        return self.module.register_forward_hook(
            lambda _module, _args, output: observe(tensor_of(output)), prepend=first
        )


def find_decoder_layers(model: nn.Module, num_layers: int) -> list[nn.Module]:
    """Find a model's decoder layers: the ``ModuleList`` with as many modules as the model has layers.

    Args:
        model: A causal language model.
        num_layers: Number of layers in the model's configuration.

    Raises:
        InputError: There is no such list, or more than one.
    """
    # Of a model that also takes images, the language model.
    decoder: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # pyright: ignore[reportCallIssue]
    found = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    # In a mixture of experts, a list of experts may have the same length; it is inside a decoder layer.
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
    """Find the taps of hook points.

    Args:
        decoder_layers: All decoder layers of the model, in order.
        layers: The captured layers, 0-based.
        points: The hook points to find.
        run_probe: Runs a few tokens through the model; called if a hook point is inside a layer.

    Returns:
        For every hook point, one tap per layer, in the order of ``layers``.

    Raises:
        InputError: A layer lacks a hook point; names both.
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
    """Run the probe while the children of these layers are observed; None for a layer without inner hook points."""
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
    """Inputs and outputs of one decoder layer and its children during the probe."""

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
        # The input of the MLP's norm is the stream between attention and MLP. Its name is unknown, so try each child.
        for middle in children:
            mid = self.inputs[middle]
            # The model computes these same sums, so the right children match exactly, without a tolerance.
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
    """Return the hidden states from a module's output: some decoder layers return a tensor, others a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def first_tensor(args: Any, named: Any) -> torch.Tensor:
    """Return the stream that a decoder layer or a part of it is called with: its first argument that is a tensor."""
    return next(value for value in (*args, *named.values()) if isinstance(value, torch.Tensor))
