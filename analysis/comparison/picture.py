"""The picture of a comparison, drawn with matplotlib: cosines and correlations over the layers of the first model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..plotting import QUIET, STYLE, caption, require_matplotlib, save_picture
from .results import ComparedLayer, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 6.6, 2.6

_Line = tuple[str, str, str, list[float | None]]
"""Label, colour, marker, and a value for each layer; None where there is none."""


def write_picture(found: Comparison, title: str, path: Path) -> None:
    """Draw a comparison and write it as one file.

    Args:
        found: The comparison.
        title: Lines above the picture.
        path: The file; its suffix is the format: png, svg or pdf.

    Raises:
        InputError: matplotlib is not installed, does not know the format, or the file cannot be written.
    """
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    panels = [("cosine", _cosines(found.layers)), ("correlation over roles", _correlations(found.layers))]
    panels = [(name, lines) for name, lines in panels if any(value is not None for line in lines for value in line[3])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT * len(panels) + 0.7))
        axes = np.ravel(figure.subplots(len(panels), 1, sharex=True, squeeze=False))
        for ax, (name, lines) in zip(axes, panels, strict=True):
            _draw(ax, name, found.layers, lines)
        axes[-1].set_xlabel("layer of A")
        notes = [line for note in found.notes for line in textwrap.wrap(note, 118)]
        caption(figure, title, notes)
        save_picture(figure, path)


def _cosines(layers: Sequence[ComparedLayer]) -> list[_Line]:
    first = [of.component_cosines[0] if of.component_cosines else None for of in layers]
    return [
        ("axes", "#0b5f85", "o", [of.axis_cosine for of in layers]),
        ("first components, absolute", "#b4500b", "s", first),
        ("role vectors, mean", "#00775a", "D", [of.role_cosine for of in layers]),
    ]


def _correlations(layers: Sequence[ComparedLayer]) -> list[_Line]:
    return [
        ("projections on the axes", "#0b5f85", "o", [of.projection_correlation for of in layers]),
        ("scores on PC1, absolute", "#b4500b", "s", [of.pc1_correlation for of in layers]),
        ("cosines of pairs of roles", "#8a3b8f", "^", [of.similarity_correlation for of in layers]),
    ]


def _draw(ax: Axes, name: str, layers: Sequence[ComparedLayer], lines: Sequence[_Line]) -> None:
    places = [of.layer_a for of in layers]
    lowest = 0.0
    for label, colour, marker, values in lines:
        numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        if np.isfinite(numbers).any():
            lowest = min(lowest, float(np.nanmin(numbers)))
            ax.plot(places, numbers, label=label, color=colour, marker=marker, markersize=3.5, linewidth=1.4)
    ax.axhline(0, color=QUIET, linewidth=0.7)
    ax.set_ylim(min(-0.05, lowest - 0.05), 1.05)
    ax.set_ylabel(name)
    ax.legend(fontsize=7.5, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
