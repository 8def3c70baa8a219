"""The arithmetic of edits: one formula for every kind, in float32, for both engines.

With v of length one and p = <h, v>, an edit turns the residual stream h of a token into h + v * change, with

    change = a + b * p + max(floor - p, 0)

``Terms`` of ``jobs/interventions.py`` has a, b and the floor of each kind of edit. Minus infinity is no floor, so
a = 0, b = 0 and that floor leave h as it is. Knows no layers, passes and requests. No shape depends on a value, so it
can be compiled and captured in CUDA graphs.
Axes: T tokens, D d_model.
"""

from __future__ import annotations

import torch

Number = torch.Tensor | float
"""One number for all tokens, or ``(T,)``."""


def projection(resid_TD: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Project tokens on directions of length one.

    Args:
        resid_TD: The residual stream, float32.
        unit: One direction ``(D,)`` for all tokens, or one for each ``(T, D)``; float32, of length one or zeros.

    Returns:
        <h, v> of each token: float32 ``(T,)``.
    """
    return torch.mv(resid_TD, unit) if unit.dim() == 1 else (resid_TD * unit).sum(dim=-1)


def change_along(projection_T: torch.Tensor, a: Number, b: Number, floor: Number) -> torch.Tensor:
    """Compute how far an edit moves tokens along its direction.

    Args:
        projection_T: <h, v> of each token, float32.
        a: Constant part, in units of the residual stream.
        b: Factor of the projection.
        floor: Least projection afterwards, in units of the residual stream; minus infinity for none.

    Returns:
        The signed length of the change: float32 ``(T,)``; 0 where the token stays as it is.

    Example:
        >>> change_along(torch.tensor([-2.0, 3.0]), 0.0, 0.0, 1.0)
        tensor([3., 0.])
    """
    return a + b * projection_T + (floor - projection_T).clamp_min(0)


def edited(
    resid_TD: torch.Tensor, unit: torch.Tensor, a: Number, b: Number, floor: Number
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply one edit to each token.

    Args:
        resid_TD: The residual stream, float32.
        unit: One direction ``(D,)`` for all tokens, or one for each ``(T, D)``; float32, of length one or zeros.
        a: Constant part, in units of the residual stream.
        b: Factor of the projection.
        floor: Least projection afterwards, in units of the residual stream; minus infinity for none.

    Returns:
        The edited stream, float32 ``(T, D)``, and the signed length of each token's change, float32 ``(T,)``.

    Example:
        >>> resid_TD, v_D = torch.tensor([[-2.0, 5.0], [3.0, 5.0]]), torch.tensor([1.0, 0.0])
        >>> edited(resid_TD, v_D, 0.0, 0.0, 1.0)[0]
        tensor([[1., 5.],
                [3., 5.]])
    """
    change_T = change_along(projection(resid_TD, unit), a, b, floor)
    if unit.dim() == 1:
        return torch.addr(resid_TD, change_T, unit), change_T
    return torch.addcmul(resid_TD, change_T[:, None], unit), change_T
