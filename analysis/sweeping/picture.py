"""The picture of a sweep, drawn with matplotlib: rates of the labels with intervals, below them the repetition."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..plotting import QUIET, STYLE, caption, require_matplotlib, save_picture
from .points import ALL, Point
from .repetition import DEGENERATE, NGRAM

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = ("#0b5f85", "#b4500b", "#00775a", "#8a3b8f", "#7a6a00", "#5b6470", "#b0325a", "#3f57b5")
_MARKERS = "osD^vPX*"
_SHADE = "#f3d9d3"
_WIDTH, _RATES_HEIGHT, _REPETITION_HEIGHT = 6.6, 3.4, 1.5


@dataclass(frozen=True)
class SweepPicture:
    """What is drawn.

    Attributes:
        points: The points of all replies under each setting (group ``all``); others are left out.
        labels: Labels of the rubric; empty without a judge.
        title: Line above the picture.
        notes: Sentences below it.
    """

    points: Sequence[Point]
    labels: Sequence[str]
    title: str
    notes: Sequence[str] = ()

    @property
    def drawn(self) -> list[Point]:
        """The points of all replies, by strength where every setting has a strength of its own."""
        whole = [point for point in self.points if point.group == ALL]
        return sorted(whole, key=lambda point: point.strength or 0.0) if _has_strengths(whole) else whole


def write_picture(picture: SweepPicture, path: Path) -> None:
    """Draw a sweep and write it as one file.

    Args:
        picture: What to draw.
        path: The file; its suffix is the format: png, svg or pdf.

    Raises:
        InputError: matplotlib is not installed, does not know the format, or the file cannot be written.
    """
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    heights = [*([_RATES_HEIGHT] if picture.labels else []), _REPETITION_HEIGHT]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.6))
        panels = np.ravel(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        if picture.labels:
            _rates(panels[0], picture)
        _repetition(panels[-1], picture)
        _places(panels[-1], picture)
        notes = [line for note in picture.notes for line in textwrap.wrap(note, 118)]
        caption(figure, picture.title, notes)
        save_picture(figure, path)


def _has_strengths(points: Sequence[Point]) -> bool:
    strengths = [point.strength for point in points]
    return None not in strengths and len(set(strengths)) == len(strengths)


def _x_of(picture: SweepPicture) -> list[float]:
    points = picture.drawn
    if _has_strengths(points):
        return [point.strength or 0.0 for point in points]
    return [float(place) for place in range(len(points))]


def _rates(ax: Axes, picture: SweepPicture) -> None:
    places, points = np.array(_x_of(picture)), picture.drawn
    _shade(ax, picture)
    # Points of several labels at one place are drawn beside each other, so that their intervals can be read.
    room = 0.012 * (float(np.ptp(places)) or 1.0)
    for number, label in enumerate(picture.labels):
        rates = [point.rates[number] for point in points]
        middle_N = np.array([rate.rate for rate in rates])
        known = np.isfinite(middle_N)
        below_N = middle_N - np.array([rate.low for rate in rates])
        above_N = np.array([rate.high for rate in rates]) - middle_N
        ax.errorbar(
            (places + room * (number - (len(picture.labels) - 1) / 2))[known],
            middle_N[known],
            yerr=(np.maximum(below_N[known], 0), np.maximum(above_N[known], 0)),
            label=label,
            color=_LINES[number % len(_LINES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.5,
            elinewidth=0.8,
            capsize=2.5,
        )
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("share of the replies with a label")
    ax.legend(fontsize=8, ncols=min(4, len(picture.labels)), loc="lower left", bbox_to_anchor=(0, 1.0))


def _repetition(ax: Axes, picture: SweepPicture) -> None:
    places, points = np.array(_x_of(picture)), picture.drawn
    _shade(ax, picture)
    ax.axhline(DEGENERATE, color="#9c3d00", linewidth=0.8, linestyle=(0, (4, 3)))
    ax.plot(places, [point.repetition for point in points], color="#1d2129", marker="o", markersize=4, label="mean")
    ax.plot(
        places,
        [point.degenerate for point in points],
        color=QUIET,
        marker="s",
        markersize=3.5,
        linestyle=":",
        label=f"share of replies at {DEGENERATE:g} or more",
    )
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel(f"repeated\n{NGRAM}-grams", fontsize=8)
    ax.legend(fontsize=7, loc="upper center", ncols=2)


def _shade(ax: Axes, picture: SweepPicture) -> None:
    """Shade the settings whose replies repeat themselves so far that their labels say little."""
    places = _x_of(picture)
    middles = [(a + b) / 2 for a, b in pairwise(places)]
    reach = 0.5 * min((b - a for a, b in pairwise(places)), default=1.0)
    edges = [places[0] - reach, *middles, places[-1] + reach] if places else []
    for number, point in enumerate(picture.drawn):
        if point.is_degenerate:
            ax.axvspan(edges[number], edges[number + 1], color=_SHADE, zorder=0, linewidth=0)
    if edges:
        ax.set_xlim(edges[0], edges[-1])


def _places(ax: Axes, picture: SweepPicture) -> None:
    points, places = picture.drawn, _x_of(picture)
    if _has_strengths(points):
        ax.set_xticks(places, [f"{place:+g}" if place else "0" for place in places])
        ax.set_xlabel("strength, in norms of the layer (higher is nearer the Assistant)")
        return
    names = ["\n".join(textwrap.wrap(point.setting, 18)) for point in points]
    ax.set_xticks(places, names, fontsize=7, rotation=30 if len(points) > 6 else 0)


def degenerate_words(points: Sequence[Point]) -> str:
    """Say at which settings the replies repeat themselves so far that their labels say little; empty for none.

    Args:
        points: Points of any group; those of all replies count.
    """
    worst = [point for point in points if point.group == ALL and point.is_degenerate]
    if not worst:
        return ""
    named = ", ".join(f"{point.setting} ({point.repetition:.0%})" for point in worst)
    return (
        f"Degenerate, at least {DEGENERATE:.0%} of {NGRAM}-grams repeated on average: {named}. Labels there say little."
    )


def percent(value: float) -> str:
    """Format a share for tables; a dash where it is not known.

    Example:
        >>> percent(0.128), percent(float("nan"))
        ('12.8%', '-')
    """
    return "-" if math.isnan(value) else f"{value:.1%}"
