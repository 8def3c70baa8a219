"""Sums of rows of a matrix on a GPU, all of them in one matrix product. Knows no engine.

Axes: P sums, N rows of the matrix, D its columns.
"""

from __future__ import annotations

import torch

_HAS_WIDE_RESULT = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
"""Whether this torch multiplies 16 bit matrices on GPUs to a float32 result."""


def sum_rows(inside_PN: torch.Tensor, values_ND: torch.Tensor) -> torch.Tensor:
    """Add up rows of a matrix in float32, without a copy of it in float32 where the device can.

    A row that is not finite makes every sum not finite, also those that it is no part of.

    Args:
        inside_PN: Bool; which rows each sum is made of.
        values_ND: The matrix, any float dtype.

    Returns:
        float32 ``(P, D)``.

    Example:
        >>> sum_rows(torch.tensor([[True, False, True]]), torch.tensor([[1.0], [2.0], [4.0]])).tolist()
        [[5.0]]
    """
    if _HAS_WIDE_RESULT and values_ND.is_cuda and values_ND.dtype in {torch.bfloat16, torch.float16}:
        # The products of numbers of 16 bits with ones are exact, and they are summed in float32.
        return torch.mm(inside_PN.to(values_ND.dtype), values_ND, out_dtype=torch.float32)
    return inside_PN.float() @ values_ND.float()
