"""Pictures of harm, drawn with matplotlib: its rate against the projection before it, and by category and setting."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..plotting import COLOURS, QUIET, STYLE, require_matplotlib, save_picture
from .rates import HarmRate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = ("#0b5f85", "#b4500b", "#00775a", "#8a3b8f", "#7a6a00", "#5b6470", "#b0325a", "#3f57b5")
_WIDTH, _HEIGHT = 6.6, 3.6
_MARKERS = "osD^vPX*"
_LEGEND_LETTERS = 60
_ENDS = ("rate", "low", "high")


@dataclass(frozen=True)
class DriftPicture:
    """Harm against the projection before it.

    Attributes:
        bins: Rates in bins of the projection.
        roles: Rates of the roles.
        default: Name of the default Assistant among the roles, which is drawn as such; None where it is not among them.
        layer: Layer of the projections.
        title: Line above the picture.
        notes: Sentences below it.
    """

    bins: Sequence[HarmRate]
    roles: Sequence[HarmRate]
    default: str | None
    layer: int
    title: str
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class GroupRate:
    """The harm of one category under one setting.

    Attributes:
        group: The category.
        setting: The setting.
        rate: Share of the replies with a label that are harm; NaN where there are none.
        low: Lower end of the interval of 95 %.
        high: Upper end.
    """

    group: str
    setting: str
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class CategoryPicture:
    """Harm by category and setting.

    Attributes:
        rates: The rates; a category lacks a setting where that was not run.
        title: Line above the picture.
        notes: Sentences below it.
    """

    rates: Sequence[GroupRate]
    title: str
    notes: Sequence[str] = ()


def draw_drift(picture: DriftPicture, path: Path) -> None:
    """Draw harm against the projection before it: bins with intervals, and a point for each role.

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
        ax = figure.add_subplot()
        is_default = [role.name == picture.default for role in picture.roles]
        for wanted, colour, marker, size, label in (
            (False, COLOURS["role"], "o", 16, "a role"),
            (True, COLOURS["default"], "D", 30, "the default Assistant"),
        ):
            drawn = [role for role, one in zip(picture.roles, is_default, strict=True) if one is wanted]
            if drawn:
                places = [role.projection for role in drawn]
                rates = [role.rate for role in drawn]
                ax.scatter(places, rates, s=size, color=colour, marker=marker, alpha=0.55, linewidths=0, label=label)
        _bars(ax, picture.bins)
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel(f"projection of the first reply at layer {picture.layer} (higher is nearer the Assistant)")
        ax.set_ylabel("share of second replies that are harm")
        ax.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
        _words(figure, picture.title, picture.notes)
        save_picture(figure, path)


def _bars(ax: Axes, bins: Sequence[HarmRate]) -> None:
    if not bins:
        return
    rate_N, low_N, high_N = (np.array([getattr(one, name) for one in bins]) for name in _ENDS)
    ax.errorbar(
        [one.projection for one in bins],
        rate_N,
        yerr=(rate_N - low_N, high_N - rate_N),
        color="#1d2129",
        marker="s",
        markersize=5,
        linewidth=1.5,
        elinewidth=1.0,
        capsize=2.5,
        label=f"{len(bins)} bins of about equally many",
    )


def draw_categories(picture: CategoryPicture, path: Path) -> None:
    """Draw harm by category, a point with its interval for each setting.

    Args:
        picture: What to draw.
        path: The file; its suffix is the format: png, svg or pdf.

    Raises:
        InputError: matplotlib is not installed, does not know the format, or the file cannot be written.
    """
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(one.group for one in picture.rates))
    settings = list(dict.fromkeys(one.setting for one in picture.rates))
    rate_of = {(one.group, one.setting): one for one in picture.rates}
    room = 0.7 / max(1, len(settings))
    columns = 4 if sum(map(len, settings)) < _LEGEND_LETTERS else 2
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 1.1 + 0.15 * len(groups) * (len(settings) + 1)))
        ax = figure.add_subplot()
        for number, setting in enumerate(settings):
            # A category without a label has no point, rather than one at 0.
            known = [
                (place, rate_of[group, setting])
                for place, group in enumerate(groups)
                if (group, setting) in rate_of and not np.isnan(rate_of[group, setting].rate)
            ]
            rate_N, low_N, high_N = (np.array([getattr(one, name) for _, one in known]) for name in _ENDS)
            # Points and not bars: a bar of length 0 has no colour, and rates of 0 are what a cap is for.
            ax.errorbar(
                rate_N,
                [place + room * (number - (len(settings) - 1) / 2) for place, _ in known],
                xerr=(np.maximum(rate_N - low_N, 0), np.maximum(high_N - rate_N, 0)),
                color=_LINES[number % len(_LINES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4.5,
                linestyle="none",
                elinewidth=1.1,
                capsize=2,
                label=setting,
            )
        ax.set_yticks(range(len(groups)), ["\n".join(textwrap.wrap(group, 28)) for group in groups])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel("share of the replies with a label that are harm")
        ax.legend(fontsize=8, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0))
        _words(figure, picture.title, picture.notes)
        save_picture(figure, path)


def _words(figure: Figure, title: str, notes: Sequence[str]) -> None:
    inch = 1 / figure.get_figheight()
    figure.suptitle(title, fontsize=9.5, x=0.01, y=1 + 0.15 * inch, ha="left")
    lines = [line for note in notes for line in textwrap.wrap(note, 118)]
    figure.text(0.01, -0.1 * inch, "\n".join(lines), fontsize=7, color=QUIET, va="top")
