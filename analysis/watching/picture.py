"""The picture of scored conversations, drawn with matplotlib: projections turn by turn, a panel for each layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..plotting import QUIET, STYLE, caption, require_matplotlib, save_picture
from .page import compared_words
from .scores import Scale, ScoredConversation, ScoredTurn, Watched

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LINES = ("#0b5f85", "#b4500b", "#00775a", "#8a3b8f", "#7a6a00", "#5b6470", "#b0325a", "#3f57b5")
"""Colours of the conversations, on white; from the ninth on they are repeated with another dash."""

_DASHES = ("-", "--", ":", "-.")
_MARKERS = {"assistant": "o", "user": "s"}
_MOST_NAMED = 16
"""Lines that the legend names: one of each conversation and role; of more it says how many there are."""

_MOST_PANELS = 12
_PANEL_WIDTH, _PANEL_HEIGHT = 7.4, 3.7


def write_picture(watched: Watched, path: Path) -> None:
    """Draw scored conversations and write them as one file.

    Args:
        watched: The conversations. Of many layers, twelve are drawn, evenly spaced.
        path: The file; its suffix is the format: png, svg or pdf.

    Raises:
        InputError: matplotlib is not installed, does not know the format, or the file cannot be written.
    """
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    count = len(watched.ruler.scales)
    places = sorted({round(place) for place in np.linspace(0, count - 1, min(count, _MOST_PANELS))})
    columns = min(2, len(places))
    rows = math.ceil(len(places) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_PANEL_WIDTH * columns, _PANEL_HEIGHT * rows + 0.3))
        panels = np.ravel(figure.subplots(rows, columns))
        for panel, place in zip(panels, places, strict=False):
            _panel(panel, watched, place)
        for panel in panels[len(places) :]:
            panel.set_visible(False)
        _legend(panels[0])
        caption(figure, _title(watched), _wrapped(watched))
        save_picture(figure, path)


def _title(watched: Watched) -> str:
    what = {"content": "what was said", "reasoning": "what was reasoned", "all": "all that was written"}[watched.part]
    return f"{watched.model.rsplit('/', 1)[-1]}: projection on the Assistant Axis, {what}"


def _wrapped(watched: Watched, width: int = 150) -> list[str]:
    import textwrap

    scales = watched.ruler.scales
    said = list(watched.warnings)
    if len(scales[0].distribution.sorted_N):
        grey = f"Grey: mean and one standard deviation of {scales[0].distribution.of} at each layer."
        said.append(compared_words(scales[0]) if len(scales) == 1 else grey)
    return [line for note in said for line in textwrap.wrap(note, width)]


def _panel(ax: Axes, watched: Watched, place: int) -> None:
    from matplotlib.ticker import MaxNLocator

    scale = watched.ruler.scales[place]
    _background(ax, scale, watched.ruler.label)
    for number, conversation in enumerate(watched.conversations):
        _conversation(ax, conversation, number, place)
    most = max((turn.turn_index for one in watched.conversations for turn in one.turns), default=1)
    ax.set_xlim(-0.5, most + 0.8)
    _fit(ax, watched, place)
    ax.set_xlabel("turn (user 0, assistant 1 ...)")
    ax.set_ylabel(f"projection at layer {scale.layer}\n(higher is nearer the Assistant)", fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if scale.distribution.std > 0:
        mean, std = scale.distribution.mean, scale.distribution.std
        right = ax.secondary_yaxis(
            "right", functions=(lambda y: (np.asarray(y) - mean) / std, lambda z: np.asarray(z) * std + mean)
        )
        right.set_ylabel(f"z-score among {scale.distribution.of}", fontsize=8, color=QUIET)


def _fit(ax: Axes, watched: Watched, place: int) -> None:
    """Show what was measured, the mean and the floor; the grey band may be wider than that."""
    scale = watched.ruler.scales[place]
    turns = [turn for one in watched.conversations for turn in one.turns]
    marks = [scale.distribution.mean, *([] if scale.floor is None else [scale.floor])]
    values = [np.array([*(turn.scores[place].projection for turn in turns), *marks])]
    values += [turn.tokens.projections_LT[place] for turn in turns if turn.tokens is not None]
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    if len(known):
        room = 0.1 * (float(np.ptp(known)) or 1.0)
        ax.set_ylim(float(known.min()) - room, float(known.max()) + room)


def _background(ax: Axes, scale: Scale, label: str | None) -> None:
    mean, std = scale.distribution.mean, scale.distribution.std
    if math.isfinite(mean):
        ax.axhline(mean, color=QUIET, linewidth=0.8)
        if std > 0:
            ax.axhspan(mean - std, mean + std, color="#eceef1", zorder=0, linewidth=0)
    if scale.floor is not None:
        ax.axhline(scale.floor, color="#1d2129", linewidth=1, linestyle=(0, (5, 3)))
        ax.annotate(
            f"floor {label}",
            (1, scale.floor),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )


def _conversation(ax: Axes, conversation: ScoredConversation, number: int, place: int) -> None:
    colour = LINES[number % len(LINES)]
    dash = _DASHES[number // len(LINES) % len(_DASHES)]
    for role in dict.fromkeys(turn.role for turn in conversation.turns):
        turns = [turn for turn in conversation.turns if turn.role == role]
        values = [turn.scores[place].projection for turn in turns]
        is_user = role == "user"
        ax.plot(
            [turn.turn_index for turn in turns],
            values,
            linestyle=":" if is_user else dash,
            color=colour,
            marker=_MARKERS[role],
            markersize=4 if is_user else 5,
            markerfacecolor="white" if is_user else colour,
            linewidth=1 if is_user else 1.6,
            label=_label(conversation.name) + (" (user)" if is_user else ""),
            zorder=4,
        )
        for turn in turns:
            _tokens(ax, turn, place, colour)


def _label(name: str) -> str:
    # matplotlib leaves out of a legend what begins with an underscore.
    return f" {name}" if name.startswith("_") else name


def _tokens(ax: Axes, turn: ScoredTurn, place: int, colour: str) -> None:
    """Draw the tokens of a turn as a faint line around its place."""
    if turn.tokens is None:
        return
    values = turn.tokens.projections_LT[place]
    places = turn.turn_index - 0.4 + 0.8 * (np.arange(len(values)) + 0.5) / len(values)
    ax.plot(places, values, color=colour, linewidth=0.5, alpha=0.4, zorder=2)


def _legend(ax: Axes) -> None:
    handles, names = ax.get_legend_handles_labels()
    shown = [name if len(name) <= 44 else f"{name[:43]}…" for name in names[:_MOST_NAMED]]
    title = None if len(names) <= _MOST_NAMED else f"{_MOST_NAMED} of {len(names)} lines"
    ax.legend(
        handles[:_MOST_NAMED],
        shown,
        fontsize=8,
        title=title,
        title_fontsize=8,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
    )
