"""Pool the residual stream while a model runs: sums on the device, one vector a rollout, layer and pooling.

``resid_post`` of block L is what that block hands on, before any final norm: Hugging Face's ``hidden_states[L + 1]``
for every block but the last, where Hugging Face gives the normed stream.
Axes: B rollouts of the batch, A of them still active, T tokens, L captured layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ..jobs.errors import InputError, UnitError


def find_blocks(model: nn.Module, n_layers: int) -> list[nn.Module]:
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
            mend="This model family is not supported yet.",
        )
    return list(outer[0])


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


class PooledCapture:
    """Accumulates poolings of one batch through hooks on the captured blocks. Use as a context manager.

    A batch goes: ``begin``, one forward pass over the prompts, then ``feed`` before each pass over one response token
    a row, then ``finish``. Sums are float32 whatever the model's dtype.

    Args:
        blocks: The model's blocks.
        layers: Which of them are captured.
        poolings: Of ``response_mean``, ``response_last``, ``prompt_mean``, ``prompt_last``.
    """

    def __init__(self, blocks: Sequence[nn.Module], layers: Sequence[int], poolings: Sequence[str]) -> None:
        self._layers = list(layers)
        self._poolings = frozenset(poolings)
        self._blocks = [blocks[layer] for layer in layers]
        self._handles: list[Any] = []
        self._pooled_LBD: dict[str, torch.Tensor] = {}
        self._prompt_finite: dict[int, torch.Tensor] = {}
        self._prompt_mask_BT: torch.Tensor | None = None
        self._rows_A = torch.empty(0, dtype=torch.long)
        self._weight_A1 = torch.empty(0)
        self._num_fed_B = torch.empty(0)
        self._fired = [0] * len(self._layers)
        self._passes = 0

    def __enter__(self) -> PooledCapture:
        for position, block in enumerate(self._blocks):
            self._handles.append(block.register_forward_hook(self._hook(position)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, prompt_mask_BT: torch.Tensor, d_model: int) -> None:
        """Start a batch; the next forward pass is the prompts'.

        Args:
            prompt_mask_BT: bool, False where a prompt is padded.
            d_model: Width of the residual stream.
        """
        rows, device = prompt_mask_BT.shape[0], prompt_mask_BT.device
        shape = (len(self._layers), rows, d_model)
        self._pooled_LBD = {name: torch.zeros(shape, device=device) for name in sorted(self._poolings)}
        self._prompt_finite = {}
        self._prompt_mask_BT = prompt_mask_BT
        self._num_fed_B = torch.zeros(rows, device=device)
        self._fired = [0] * len(self._layers)
        self._passes = 1

    def feed(self, rows_A: torch.Tensor, is_content_A: torch.Tensor) -> None:
        """Say what the next forward pass carries: one token for each of these rows.

        Args:
            rows_A: int64, the batch rows still in the pass.
            is_content_A: bool, whether the row's token belongs to its response.
        """
        self._prompt_mask_BT = None
        self._rows_A = rows_A
        self._weight_A1 = is_content_A.float()[:, None]
        self._num_fed_B.index_add_(0, rows_A, is_content_A.float())
        self._passes += 1

    def finish(self) -> dict[str, torch.Tensor]:
        """Give the batch's poolings: float32 ``(B, L, D)`` each, on the CPU.

        Rows without any response token are NaN in the response poolings.

        Raises:
            UnitError: A layer did not run in some pass, or gave a number that is not finite; names the layer.
        """
        for layer, fired in zip(self._layers, self._fired, strict=True):
            if fired != self._passes:
                raise UnitError(
                    f"layer {layer} was seen in {fired} of {self._passes} forward passes.", code="hook_not_fired"
                )
        self.check_finite()
        result: dict[str, torch.Tensor] = {}
        empty_B = self._num_fed_B == 0
        for name, pooled_LBD in self._pooled_LBD.items():
            if name == "response_mean":
                pooled_LBD = pooled_LBD / self._num_fed_B.clamp_min(1)[:, None]
            if name.startswith("response_"):
                pooled_LBD = torch.where(empty_B[:, None], torch.nan, pooled_LBD)
            result[name] = pooled_LBD.transpose(0, 1).contiguous().cpu()
        self._pooled_LBD = {}
        return result

    def check_finite(self) -> None:
        """Make sure that every number so far is finite; may be asked in the middle of a batch.

        Raises:
            UnitError: One is not; names the first captured layer that gave such a number.
        """
        # A block hands a number that is not finite on to all above it: the lowest layer is where it began.
        for position, layer in enumerate(self._layers):
            if position in self._prompt_finite and not bool(self._prompt_finite[position]):
                raise UnitError(f"layer {layer}: a prompt's last token is not finite.", code="not_finite")
            for name, pooled_LBD in self._pooled_LBD.items():
                if not bool(torch.isfinite(pooled_LBD[position]).all()):
                    raise UnitError(f"layer {layer}: {name} is not finite.", code="not_finite")

    def _hook(self, position: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            resid_ATD = output[0] if isinstance(output, tuple) else output
            self._fired[position] += 1
            if self._prompt_mask_BT is not None:
                self._pool_prompt(position, resid_ATD, self._prompt_mask_BT)
            else:
                self._pool_response(position, resid_ATD[:, 0].float())

        return keep

    def _pool_prompt(self, position: int, resid_BTD: torch.Tensor, mask_BT: torch.Tensor) -> None:
        self._prompt_finite[position] = torch.isfinite(resid_BTD[:, -1]).all()
        if "prompt_mean" in self._poolings:
            # What stands at padding may be anything, and a zero weight would not silence an infinity.
            resid_BTD = torch.where(mask_BT[:, :, None], resid_BTD, 0.0)
            weights_B1T = (mask_BT / mask_BT.sum(dim=1, keepdim=True))[:, None].float()
            self._pooled_LBD["prompt_mean"][position] = (weights_B1T @ resid_BTD.float())[:, 0]
        if "prompt_last" in self._poolings:
            # Prompts are padded on the left: the last token of each is the last column.
            self._pooled_LBD["prompt_last"][position] = resid_BTD[:, -1].float()

    def _pool_response(self, position: int, resid_AD: torch.Tensor) -> None:
        # Rows that have ended are masked, not multiplied: a zero weight would not silence an infinity.
        content_A1 = self._weight_A1 > 0
        if "response_mean" in self._poolings:
            added_AD = torch.where(content_A1, resid_AD, 0.0)
            self._pooled_LBD["response_mean"][position].index_add_(0, self._rows_A, added_AD)
        if "response_last" in self._poolings:
            pooled_BD = self._pooled_LBD["response_last"][position]
            pooled_BD[self._rows_A] = torch.where(content_A1, resid_AD, pooled_BD[self._rows_A])
