"""The picture of drift, drawn with matplotlib: mean trajectories with bands by group, and beside them the drops."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..plotting import QUIET, STYLE, caption, require_matplotlib, save_picture
from ..watching.picture import LINES
from .drift import DriftResults
from .trajectories import ALL, Drop, Trajectory, longest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN = 8
"""Groups that are drawn: those with most conversations."""

_MARKERS = "osD^vPX*"
_WIDTH, _HEIGHT = 9.6, 4.0


def write_picture(results: DriftResults, path: Path) -> None:
    """Draw the drift of conversations and write it as one file.

    Args:
        results: What ``study_drift`` found.
        path: The file; its suffix is the format: png, svg or pdf.

    Raises:
        InputError: matplotlib is not installed, does not know the format, or the file cannot be written.
    """
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    drawn = _drawn(results)
    names = {one.group for one in drawn}
    drops = [drop for drop in results.drops if drop.group in names or drop.group == ALL]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT + 0.6))
        grid = figure.add_gridspec(2, 2, width_ratios=(1.7, 1), height_ratios=(4, 1))
        upper = figure.add_subplot(grid[0, 0])
        _trajectories(upper, drawn, results)
        _counts(figure.add_subplot(grid[1, 0], sharex=upper), drawn)
        _drops(figure.add_subplot(grid[:, 1]), drops, drawn, results)
        model = results.model.rsplit("/", 1)[-1]
        title = f"{model}: projection of replies on the Assistant Axis, layer {results.scale.layer}"
        caption(figure, title, _words(results, drawn))
        save_picture(figure, path)


def _drawn(results: DriftResults) -> list[Trajectory]:
    by_size = sorted(results.trajectories, key=lambda one: -one.num_conversations)[:MOST_DRAWN]
    return [one for one in results.trajectories if one in by_size]


def _trajectories(ax: Axes, drawn: list[Trajectory], results: DriftResults) -> None:
    compared = results.scale.distribution
    if math.isfinite(compared.mean):
        ax.axhline(compared.mean, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
    for place, one in enumerate(drawn):
        reply_T = np.arange(1, len(one.mean_T) + 1)
        colour, known = LINES[place], np.isfinite(one.mean_T)
        ax.plot(
            reply_T[known],
            one.mean_T[known],
            color=colour,
            marker=_MARKERS[place],
            markersize=4,
            linewidth=1.5,
            label=one.group,
        )
        ax.fill_between(
            reply_T, one.interval_T2[:, 0], one.interval_T2[:, 1], color=colour, alpha=0.16, linewidth=0, zorder=1
        )
    _fit(ax, drawn)
    ax.set_ylabel("mean projection\n(higher is nearer the Assistant)", fontsize=8)
    ax.tick_params(labelbottom=False)
    ax.legend(fontsize=8, ncols=min(4, len(drawn)), loc="lower left", bbox_to_anchor=(0, 1.0))
    if compared.std > 0:
        mean, std = compared.mean, compared.std
        right = ax.secondary_yaxis(
            "right", functions=(lambda y: (np.asarray(y) - mean) / std, lambda z: np.asarray(z) * std + mean)
        )
        right.set_ylabel(f"z-score among {compared.of}", fontsize=8, color=QUIET)


def _fit(ax: Axes, drawn: list[Trajectory]) -> None:
    """Show the trajectories and their bands; what they are compared with may lie far from them."""
    values = np.concatenate([np.ravel(part) for one in drawn for part in (one.mean_T, one.interval_T2)])
    values = values[np.isfinite(values)]
    room = 0.08 * (float(np.ptp(values)) or 1.0)
    ax.set_ylim(float(values.min()) - room, float(values.max()) + room)


def _counts(ax: Axes, drawn: list[Trajectory]) -> None:
    from matplotlib.ticker import MaxNLocator

    for place, one in enumerate(drawn):
        ax.step(
            np.arange(1, len(one.count_T) + 1), one.count_T, where="mid", color=LINES[place], linewidth=1.2, alpha=0.8
        )
    ax.set_ylim(0, 1.15 * max(int(one.count_T.max()) for one in drawn))
    ax.set_xlim(0.5, longest(drawn) + 0.5)
    ax.set_ylabel("conver-\nsations", fontsize=8)
    ax.set_xlabel("reply")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))


def _drops(ax: Axes, drops: list[Drop], drawn: list[Trajectory], results: DriftResults) -> None:
    colours = {one.group: (LINES[place], _MARKERS[place]) for place, one in enumerate(drawn)}
    ax.axvline(0, color=QUIET, linewidth=0.8)
    for place, drop in enumerate(drops):
        if not math.isfinite(drop.change):
            continue
        colour, marker = colours.get(drop.group, ("#1d2129", "o"))
        low, high = drop.interval
        if math.isfinite(low):
            ax.plot([low, high], [place, place], color=colour, linewidth=1.4)
        ax.plot([drop.change], [place], color=colour, marker=marker, markersize=5)
    ax.set_yticks(range(len(drops)), [f"{drop.group}\nn = {drop.num_conversations}" for drop in drops], fontsize=8)
    ax.set_ylim(len(drops) - 0.4, -0.6)
    ax.set_xlabel("drop: last less first replies\n(left is away from the Assistant)", fontsize=8)
    if results.scale.distribution.std > 0:
        std = results.scale.distribution.std
        top = ax.secondary_xaxis("top", functions=(lambda x: np.asarray(x) / std, lambda z: np.asarray(z) * std))
        top.set_xlabel(f"standard deviations of {results.scale.distribution.of}", fontsize=8, color=QUIET)


def _words(results: DriftResults, drawn: list[Trajectory]) -> list[str]:
    said = [
        f"Bands and bars: 95 % by a bootstrap over conversations. Drop: {results.window.describe()}.",
        *results.notes,
    ]
    if math.isfinite(results.scale.distribution.mean):
        said.append(f"Dotted: mean of the {results.scale.distribution.of} behind the axis, where it is in view.")
    if len(drawn) < len(results.trajectories):
        said.append(f"Drawn: the {len(drawn)} of {len(results.trajectories)} groups with most conversations.")
    return [line for note in said for line in textwrap.wrap(note, 160)]
