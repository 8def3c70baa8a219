"""The picture of a prediction, drawn with matplotlib: predicted against actual, and clusters of messages by change."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...jobs.wording import count_of
from ..plotting import QUIET, STYLE, caption, require_matplotlib, save_picture
from ..watching.picture import LINES
from .clusters import Cluster
from .predict import PredictionResults
from .regression import Regression

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"away": "#b4500b", "keeps": "#5b6470", "toward": "#0b5f85"}
"""Colour of each effect of a cluster."""

_MOST_GROUPS = 8
_WIDTH, _HEIGHT = 11.0, 4.6


def write_picture(results: PredictionResults, path: Path) -> None:
    """Draw a prediction and the clusters of messages, and write them as one file.

    Args:
        results: What ``predict_of`` found.
        path: The file; its suffix is the format: png, svg or pdf.

    Raises:
        InputError: matplotlib is not installed, does not know the format, or the file cannot be written.
    """
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        has_clusters = bool(results.clusters)
        figure = Figure(figsize=(_WIDTH if has_clusters else _WIDTH / 2, _HEIGHT))
        panels = np.ravel(figure.subplots(1, 2 if has_clusters else 1))
        _predicted(panels[0], results)
        if has_clusters:
            _clusters(panels[1], results)
        model = results.model.rsplit("/", 1)[-1]
        title = f"{model}: the next reply on the Assistant Axis, layer {results.scale.layer}, by the message before it"
        lines = [line for note in _words(results) for line in textwrap.wrap(note, 175 if has_clusters else 90)]
        caption(figure, title, lines)
        save_picture(figure, path)


def _predicted(ax: Axes, results: PredictionResults) -> None:
    found = results.projection
    groups = sorted(set(found.group.tolist()))
    for place, group in enumerate(groups):
        own = found.group == group
        ax.scatter(
            found.predicted_N[own],
            found.actual_N[own],
            s=9,
            color=LINES[place % len(LINES)],
            alpha=0.55,
            linewidths=0,
            label=group if place < _MOST_GROUPS else None,
        )
    low = float(min(found.predicted_N.min(), found.actual_N.min()))
    high = float(max(found.predicted_N.max(), found.actual_N.max()))
    ax.plot([low, high], [low, high], color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set_xlabel("predicted, its conversation held out")
    ax.set_ylabel("projection of the reply\n(higher is nearer the Assistant)", fontsize=8)
    ax.text(0.02, 0.98, _figures(found), transform=ax.transAxes, va="top", fontsize=7.5, color="#1d2129")
    if len(groups) > 1:
        ax.legend(fontsize=7.5, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), markerscale=1.6)


def _figures(found: Regression) -> str:
    shown = [f"R² {fit.r_squared:+.2f}  {fit.name}{' (flatters)' if fit.flatters else ''}" for fit in found.fits]
    return "\n".join(shown)


def _clusters(ax: Axes, results: PredictionResults) -> None:
    ax.axvline(0, color=QUIET, linewidth=0.8)
    for place, cluster in enumerate(results.clusters):
        colour = COLOURS[cluster.effect]
        low, high = cluster.interval
        if math.isfinite(low):
            ax.plot([low, high], [place, place], color=colour, linewidth=1.5)
        ax.plot([cluster.change], [place], color=colour, marker="o", markersize=5)
    ax.set_yticks(range(len(results.clusters)), [_label(cluster) for cluster in results.clusters], fontsize=7)
    ax.set_ylim(len(results.clusters) - 0.5, -0.5)
    ax.set_xlabel("mean change of the projection since the reply before\n(left is away from the Assistant)", fontsize=8)


def _label(cluster: Cluster) -> str:
    text = textwrap.shorten(cluster.typical[0], 84, placeholder=" ...") or cluster.typical[0][:84]
    messages = count_of(cluster.num_messages, "message")
    within = count_of(cluster.num_conversations, "conversation")
    return "\n".join([*textwrap.wrap(text, 44), f"({messages} of {within})"])


def _words(results: PredictionResults) -> list[str]:
    found = results.projection
    replies = count_of(found.num_replies, "reply", "replies")
    replies += f" of {count_of(found.num_conversations, 'conversation')}"
    said = [f"Left: {replies}; embeddings of {results.embedder}."]
    if results.clusters:
        said.append(
            "Right: clusters of messages, each with the message nearest to its centre; bars are 95 % by a bootstrap "
            "over conversations, of at least five. Coloured where p, by Holm's method, is below 0.05."
        )
    return said
