"""Where in a block of a model each hook point is, found by arithmetic and not by a family's names.

With ``resid`` the residual stream, block L does ``resid_mid = resid_pre + attn_out`` and then
``resid_post = resid_mid + mlp_out``:

    resid_pre   what the block takes in
    attn_out    what its attention adds to the stream (after a norm of its own, where the family has one)
    resid_mid   the stream between the two, before the MLP's norm
    mlp_out     what its MLP, or mixture of experts, adds
    resid_post  what the block hands on, before any final norm

A block's children are watched while a few tokens pass; the ones whose outputs make both sums come out to the last bit
are the hook points. A block in which there are no such children (attention and MLP side by side, scaled branches) is
refused by name: there the words would mean something else.
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
    """One place to look at: what a module takes in, or what it gives out."""

    module: nn.Module
    of_input: bool

    def attach(self, look: Callable[[torch.Tensor], None]) -> Any:
        """Have a function look at every tensor that passes; give a handle whose ``remove`` ends that."""
        if self.of_input:
            return self.module.register_forward_pre_hook(
                lambda _module, args, named: look(_first_tensor(args, named)), with_kwargs=True
            )
        return self.module.register_forward_hook(lambda _module, _args, output: look(_tensor_of(output)))


def find_decoder_layers(model: nn.Module, n_layers: int) -> list[nn.Module]:
    """Find a decoder's blocks: the one list of modules that has a module for every layer.

    Raises:
        InputError: There is no such list, or more than one.
    """
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    # In a mixture of experts the list of experts may be as long; the blocks hold it, never the other way.
    outer = [m for m in found if not any(m is not other and _holds(other, m) for other in found)]
    if len(outer) != 1:
        raise InputError(
            f"the blocks of a {type(model).__name__} cannot be told: {len(outer)} lists of {n_layers} modules.",
            code="unknown_model",
            field="model.source",
            hint="This model family is not supported yet.",
        )
    return list(outer[0])


def find_taps(
    blocks: Sequence[nn.Module], layers: Sequence[int], points: Sequence[HookPoint], run_probe: Callable[[], object]
) -> dict[HookPoint, list[Tap]]:
    """Find the places of hook points.

    Args:
        blocks: The model's blocks.
        layers: Which of them are asked for.
        points: Which places in them.
        run_probe: Runs a few tokens through the model; called where a place has to be found inside a block.

    Returns:
        For every point one place per layer, in the order of ``layers``.

    Raises:
        InputError: A block has no such place; names the point and the layer.
    """
    inner = [point for point in points if point not in ("resid_pre", "resid_post")]
    seen = {layer: _Seen(blocks[layer]) for layer in layers} if inner else {}
    handles = [handle for block in seen.values() for handle in block.watch()]
    try:
        if inner:
            run_probe()
    finally:
        for handle in handles:
            handle.remove()
    found = {layer: block.places() for layer, block in seen.items()}
    for layer, places in found.items():
        if places is None:
            raise InputError(
                f"{', '.join(inner)} cannot be told in block {layer}, a {type(blocks[layer]).__name__}: no parts of it "
                "add up to resid_mid = resid_pre + attn_out and resid_post = resid_mid + mlp_out.",
                code="no_hook_point",
                field="capture.hook_points",
                hint="Choose resid_pre or resid_post, which every family has.",
            )
    ends: dict[HookPoint, bool] = {"resid_pre": True, "resid_post": False}
    return {
        point: [
            Tap(blocks[layer], of_input=ends[point]) if point in ends else (found[layer] or {})[point]
            for layer in layers
        ]
        for point in points
    }


@dataclass
class _Seen:
    """What passed through one block and its children while the probe ran."""

    block: nn.Module
    taken: dict[nn.Module, torch.Tensor] = field(default_factory=dict)
    given: dict[nn.Module, torch.Tensor] = field(default_factory=dict)

    def watch(self) -> list[Any]:
        handles: list[Any] = []
        for module in (self.block, *self.block.children()):
            handles.append(Tap(module, of_input=True).attach(partial(self.taken.__setitem__, module)))
            handles.append(Tap(module, of_input=False).attach(partial(self.given.__setitem__, module)))
        return handles

    def places(self) -> dict[HookPoint, Tap] | None:
        pre, post = self.taken[self.block], self.given[self.block]
        children = [m for m in self.given if m is not self.block and self.given[m].shape == pre.shape]
        for middle in children:
            mid = self.taken[middle]
            # The sums are the model's own operations: equal to the last bit, or something else.
            attention = [m for m in children if _adds_up(pre, self.given[m], mid)]
            mlp = [m for m in children if _adds_up(mid, self.given[m], post)]
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


def _tensor_of(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _first_tensor(args: Any, named: Any) -> torch.Tensor:
    return next(value for value in (*args, *named.values()) if isinstance(value, torch.Tensor))
