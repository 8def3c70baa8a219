"""Activation capping: settings for windows of layers, and what a cap does to a residual stream.

A setting names the layers whose residual stream is capped and the percentile that gives the caps, as released:
``layers_46:54-p0.25`` caps layers 46 to 53. Its vectors and caps are in the released sign: unit vectors along -axis,
and ceilings for the projection on them. Which setting is best is a question for an evaluation of the model's replies;
until one has been run, a window is recommended by the depth at which others were found best.
Axes: T tokens, L layers of a setting, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .axis import unit
from .thresholds import Thresholds

Float64 = npt.NDArray[np.float64]

WIDTHS = (4, 8, 16)
"""Widths in layers of the windows for which there are settings; each window begins half a width after the one
before."""

RECOMMENDED_LABEL = "p0.25"
"""The percentile that was found best for both models of the paper."""

_BEST_FOUND = ((64, 46, 54), (80, 56, 72))
"""Number of layers of the paper's models, Qwen 3 32B and Llama 3.3 70B, with the window found best, end exclusive."""


@dataclass(frozen=True, eq=False)
class CappingSetting:
    """What to cap: one direction and one ceiling for each layer of a contiguous window.

    Attributes:
        name: As in released configurations, end exclusive: ``layers_46:54-p0.25``.
        layers: The layers of the window, 0-based.
        label: Percentile of the projection on -axis, as a fraction: ``p0.25``.
        vectors_LD: Unit vectors along -axis, so away from the Assistant.
        caps_L: Ceiling for the projection on these vectors.
        basis: Why this setting is recommended, a sentence that says what it does not rest on; None: it is not.
    """

    name: str
    layers: tuple[int, ...]
    label: str
    vectors_LD: Float64
    caps_L: Float64
    basis: str | None = None

    @property
    def is_recommended(self) -> bool:
        """Whether this is the setting to try first."""
        return self.basis is not None


def recommended_window(n_layers: int) -> range:
    """Return the layers to cap in a model for which no evaluation has been run.

    The window covers the same fraction of the depth as the windows found best in Lu et al. (arXiv 2601.10387): layers
    46 to 53 of 64 and 56 to 71 of 80. Between these two sizes it is interpolated; a shallower model has the fractions
    of the first, a deeper one those of the second.

    Args:
        n_layers: Number of layers of the model.

    Example:
        >>> recommended_window(64), recommended_window(80), recommended_window(30)
        (range(46, 54), range(56, 72), range(22, 25))
    """
    sizes = [size for size, _, _ in _BEST_FOUND]
    first = np.interp(n_layers, sizes, [start / size for size, start, _ in _BEST_FOUND])
    end = np.interp(n_layers, sizes, [stop / size for size, _, stop in _BEST_FOUND])
    start = min(round(n_layers * float(first)), n_layers - 1)
    return range(start, max(round(n_layers * float(end)), start + 1))


def windows(n_layers: int, widths: Sequence[int] = WIDTHS, step: int | None = None) -> Iterator[range]:
    """List windows of consecutive layers, the narrow ones first.

    Args:
        n_layers: Number of layers of the model.
        widths: Widths in layers; those wider than the model give none.
        step: Layers from the start of one window to that of the next; None: half the width, rounded up.

    Example:
        >>> [f"{window.start}:{window.stop}" for window in windows(8, widths=(4, 16))]
        ['0:4', '2:6', '4:8']
    """
    for width in widths:
        for start in range(0, n_layers - width + 1, step or -(-width // 2)):
            yield range(start, start + width)


def capping_settings(
    axis_LD: npt.NDArray[np.floating],
    layers: Sequence[int],
    found: Thresholds,
    n_layers: int,
    *,
    widths: Sequence[int] = WIDTHS,
    step: int | None = None,
    windows_asked: Sequence[range] | None = None,
) -> list[CappingSetting]:
    """Make the capping settings of a run: every window with every percentile.

    Args:
        axis_LD: The axis, NaN at layers where it is undefined.
        layers: The captured layers, along L.
        found: Thresholds at these layers.
        n_layers: Number of layers of the model.
        widths: Widths of the windows in layers.
        step: Layers from one window to the next; None: half the width.
        windows_asked: The windows, instead of the recommended one and those of the widths.

    Returns:
        Those of the recommended window first, with the recommended setting at the head, then the others by width, first
        layer and percentile. A window of which a layer was not captured or has no axis has no setting.

    Example:
        >>> from persona_atlas.analysis.thresholds import thresholds
        >>> found = thresholds(np.arange(8.0)[:, None] * np.ones(8), percentiles=(25, 50))
        >>> settings = capping_settings(np.ones((8, 2)), range(8), found, 8, widths=(4,))
        >>> [setting.name for setting in settings][:3]
        ['layers_6:7-p0.25', 'layers_6:7-p0.5', 'layers_0:4-p0.25']
    """
    axis = np.asarray(axis_LD, np.float64)
    at = {layer: position for position, layer in enumerate(layers) if np.isfinite(axis[position]).all()}
    recommended = recommended_window(n_layers)
    settings = [
        _setting(window, label, axis, at, found.cap_on_minus_axis_QL[number])
        for window in dict.fromkeys(windows_asked or [recommended, *windows(n_layers, widths, step)])
        if all(layer in at for layer in window)
        for number, label in enumerate(found.labels)
    ]
    best = f"{_place(recommended)}-{RECOMMENDED_LABEL}"
    basis = (
        f"No evaluation of this model's replies has been run: layers {recommended.start} to {recommended.stop - 1} of "
        f"{n_layers} are as deep as those found best for Qwen 3 32B (46 to 53 of 64) and Llama 3.3 70B (56 to 71 "
        "of 80)."
    )
    marked = [setting if setting.name != best else _recommend(setting, basis) for setting in settings]
    # A window of the usual widths may be the recommended one; the percentiles that are not recommended stay in place.
    return sorted(marked, key=lambda setting: not setting.is_recommended)


def _setting(window: range, label: str, axis_LD: Float64, at: dict[int, int], cap_L: Float64) -> CappingSetting:
    positions = [at[layer] for layer in window]
    return CappingSetting(
        f"{_place(window)}-{label}", tuple(window), label, -unit(axis_LD[positions]), np.asarray(cap_L[positions])
    )


def _recommend(setting: CappingSetting, basis: str) -> CappingSetting:
    return CappingSetting(setting.name, setting.layers, setting.label, setting.vectors_LD, setting.caps_L, basis)


def _place(window: range) -> str:
    return f"layers_{window.start}:{window.stop}"


def ceiling_on_minus_axis(
    resid_TD: npt.NDArray[np.floating], minus_axis_D: npt.NDArray[np.floating], cap: float
) -> Float64:
    """Cap a residual stream as released: hold its projection on -axis at or below a ceiling.

    h <- h - u * max(<h, u> - c, 0), with u the unit vector along -axis and c the ceiling.

    Args:
        resid_TD: Residual stream.
        minus_axis_D: -axis, of any length.
        cap: Ceiling for the projection on -axis, as ``cap_on_minus_axis``.

    Returns:
        ``(T, D)``; a token whose projection is below the ceiling is unchanged.

    Example:
        >>> ceiling_on_minus_axis(np.array([[5.0, 1.0], [1.0, 1.0]]), np.array([2.0, 0.0]), cap=3.0).tolist()
        [[3.0, 1.0], [1.0, 1.0]]
    """
    resid_TD, direction_D = np.asarray(resid_TD, np.float64), unit(np.asarray(minus_axis_D, np.float64))
    return resid_TD - np.maximum(resid_TD @ direction_D - cap, 0)[:, None] * direction_D


def floor_on_axis(resid_TD: npt.NDArray[np.floating], axis_D: npt.NDArray[np.floating], floor: float) -> Float64:
    """Cap a residual stream in this project's sign: hold its projection on the axis at or above a floor.

    h <- h - v * min(<h, v> - tau, 0), with v the unit axis and tau the floor. With v = -u and tau = -c it is the same
    operation as the released one.

    Args:
        resid_TD: Residual stream.
        axis_D: The axis, of any length.
        floor: Floor for the projection on the axis, as ``floor_on_axis`` of a reduction.

    Returns:
        ``(T, D)``; a token whose projection is above the floor is unchanged.

    Example:
        >>> floor_on_axis(np.array([[5.0, 1.0], [1.0, 1.0]]), np.array([2.0, 0.0]), floor=3.0).tolist()
        [[5.0, 1.0], [3.0, 1.0]]
    """
    resid_TD, direction_D = np.asarray(resid_TD, np.float64), unit(np.asarray(axis_D, np.float64))
    return resid_TD - np.minimum(resid_TD @ direction_D - floor, 0)[:, None] * direction_D
