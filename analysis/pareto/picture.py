"""The picture of a Pareto front, drawn with matplotlib: harm change against capability change, the front named."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..plotting import QUIET, STYLE, caption, require_matplotlib, save_picture
from ..report.labels import SIDES, place_labels
from .front import ParetoPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FRONT, _OTHER, _PLAIN, _CHOSEN = "#0b5f85", "#a8adb6", "#1d2129", "#b4500b"
_WIDTH, _HEIGHT = 6.6, 4.6
_NAME_SIZE = 7.5


@dataclass(frozen=True)
class ParetoPicture:
    """What is drawn.

    Attributes:
        points: All points.
        front: Those on the front, by falling capability.
        chosen: The chosen point; None for none.
        tolerance: How much capability the chosen point may cost; None where it was chosen by name.
        title: Line above the picture.
        notes: Sentences below it.
    """

    points: Sequence[ParetoPoint]
    front: Sequence[ParetoPoint]
    chosen: ParetoPoint | None
    tolerance: float | None
    title: str
    notes: Sequence[str] = ()


def write_picture(picture: ParetoPicture, path: Path) -> None:
    """Draw a front and write it as one file.

    Args:
        picture: What to draw.
        path: The file; its suffix is the format: png, svg or pdf.

    Raises:
        InputError: matplotlib is not installed, does not know the format, or the file cannot be written.
    """
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        ax = figure.subplots()
        _draw(ax, picture)
        notes = [line for note in picture.notes for line in textwrap.wrap(note, 118)]
        caption(figure, picture.title, notes)
        _name(figure, ax, picture)
        save_picture(figure, path)


def _draw(ax: Axes, picture: ParetoPicture) -> None:
    front = {point.name for point in picture.front}
    for group, colour, label, order in (
        ([one for one in picture.points if one.name not in front], _OTHER, "dominated", 2),
        (list(picture.front), _FRONT, "on the front", 4),
    ):
        if group:
            _points(ax, group, colour, label, order)
    capability, harm = _percent(picture.front)
    # Below and right of the steps is what no setting reaches.
    ax.step(capability, harm, where="post", color=_FRONT, linewidth=1.0, alpha=0.7, zorder=3)
    if picture.chosen is not None:
        x, y = _percent([picture.chosen])
        ax.plot(x, y, "o", markersize=12, markerfacecolor="none", markeredgecolor=_CHOSEN, label="chosen", zorder=5)
    ax.plot(0, 0, "s", markersize=6, color=_PLAIN, label="the model as it is", zorder=6)
    if picture.tolerance is not None:
        label = f"tolerance, {100 * picture.tolerance:g} points"
        ax.axvline(-100 * picture.tolerance, color=_CHOSEN, linewidth=0.8, linestyle=(0, (4, 3)), label=label)
    ax.set_xlabel("change of capability, in points of 100 (right is better)")
    ax.set_ylabel("change of the harm rate, in points of 100 (down is better)")
    ax.margins(0.12)
    ax.legend(fontsize=7.5, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))


def _points(ax: Axes, points: Sequence[ParetoPoint], colour: str, label: str, order: int) -> None:
    edited = [point for point in points if not point.is_plain]
    x, y = _percent(edited)
    spread = [
        np.abs(100 * np.array([[change.value - change.low, change.high - change.value] for change in changes])).T
        for changes in ([one.capability for one in edited], [one.harm for one in edited])
        if changes
    ]
    if spread:
        bars = {"ecolor": colour, "elinewidth": 0.7, "capsize": 2.0, "alpha": 0.55}
        ax.errorbar(x, y, xerr=spread[0], yerr=spread[1], fmt="none", zorder=order - 1, **bars)
        ax.plot(x, y, "o", markersize=5, color=colour, label=label, zorder=order)


def _name(figure: Figure, ax: Axes, picture: ParetoPicture) -> None:
    """Write the names of all points on the front, and of others where there is room."""
    named = [point for point in picture.points if not point.is_plain]
    if not named:
        return
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()
    per_point = 72 / figure.dpi
    places_N2 = ax.transData.transform(np.stack(_percent(named), axis=1)) * per_point
    box = ax.get_window_extent()
    x, y = places_N2[:, 0] - box.x0 * per_point, places_N2[:, 1] - box.y0 * per_point
    front = {point.name for point in picture.front}
    first = [number for number, point in enumerate(named) if point.name in front]
    room = (box.width * per_point, box.height * per_point)
    for number, side in place_labels(x, y, [point.name for point in named], _NAME_SIZE, room, first).items():
        dx, dy = SIDES[side]
        ax.annotate(
            named[number].name,
            (100 * named[number].capability.value, 100 * named[number].harm.value),
            xytext=(6 * dx, 6 * dy or 1),
            textcoords="offset points",
            ha={-1.0: "right", 0.0: "center", 1.0: "left"}[dx],
            # Beside a point a name stands on its horizontal bar, not across it.
            va="top" if dy < 0 else "bottom",
            fontsize=_NAME_SIZE,
            color=_FRONT if number in first else QUIET,
            weight="bold" if number in first else "normal",
            # Names may lie on bars of intervals.
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=7,
        )


def _percent(points: Sequence[ParetoPoint]) -> tuple[np.ndarray, np.ndarray]:
    """Return capability and harm of points, in hundredths."""
    return (
        100 * np.array([point.capability.value for point in points]),
        100 * np.array([point.harm.value for point in points]),
    )
