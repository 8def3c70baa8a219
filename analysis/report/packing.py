"""Pack arrays for the page: 16 bits a value, as base64, scaled by layer.

Values of one layer are divided into 65,534 steps between their lowest and highest, so a value is off by at most
0.0008 % of the layer's range: far less than a pixel, and a quarter of the bytes that decimal digits take.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

_MISSING = -32768
_STEPS = 65534


def packed(values_L: npt.NDArray[np.floating] | None) -> dict[str, Any] | None:
    """Pack an array whose first axis is that of the layers; None stays None.

    Args:
        values_L: ``(L, ...)``; values that are not finite become NaN.

    Returns:
        ``shape`` of a layer; ``low`` and ``step`` by layer, 0 where it has no value; ``codes``, int16 little-endian as
        base64: a value is ``low + step * (code + 32767)``, and -32768 is NaN.

    Example:
        >>> packed(np.array([[1.0, np.nan, 3.0]]))
        {'shape': [3], 'low': [1.0], 'step': [3.051850947599719e-05], 'codes': 'AYAAgP9/'}
    """
    if values_L is None:
        return None
    values = np.asarray(values_L, dtype=np.float64)
    flat_LN = values.reshape(values.shape[0], -1)
    codes_LN = np.full(flat_LN.shape, _MISSING, dtype="<i2")
    lows, steps = [0.0] * len(flat_LN), [0.0] * len(flat_LN)
    for layer, row_N in enumerate(flat_LN):
        there_N = np.isfinite(row_N)
        if there_N.any():
            low, high = float(row_N[there_N].min()), float(row_N[there_N].max())
            step = (high - low) / _STEPS
            scaled = (row_N[there_N] - low) / step if step > 0 else np.zeros(int(there_N.sum()))
            codes_LN[layer, there_N] = np.rint(scaled).astype(np.int64) - 32767
            lows[layer], steps[layer] = low, step
    codes = base64.b64encode(codes_LN.tobytes()).decode("ascii")
    return {"shape": list(values.shape[1:]), "low": lows, "step": steps, "codes": codes}


def unpacked(stored: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Undo ``packed``, as the page's script does.

    Example:
        >>> unpacked(packed(np.array([[1.0, np.nan, 3.0]])))
        array([[ 1., nan,  3.]])
    """
    low_L1, step_L1 = (np.array(stored[name])[:, None] for name in ("low", "step"))
    codes_LN = np.frombuffer(base64.b64decode(stored["codes"]), dtype="<i2").reshape(len(low_L1), -1).astype(np.float64)
    values_LN = np.where(codes_LN == _MISSING, np.nan, low_L1 + step_L1 * (codes_LN + 32767))
    return values_LN.reshape(len(low_L1), *stored["shape"])


def plain(values: npt.NDArray[np.floating] | None, digits: int = 5) -> list[Any] | None:
    """Make a short array part of a JSON object, with NaN as null.

    Args:
        values: Any shape; None stays None.
        digits: Significant digits that are kept.

    Example:
        >>> plain(np.array([0.123456789, np.nan]))
        [0.12346, None]
    """
    if values is None:
        return None
    if values.ndim > 1:
        return [plain(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]
