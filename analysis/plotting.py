"""What all pictures have in common: colours, style, title and small print, and how they are written to a file.

matplotlib is an extra, because only pictures need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..jobs.errors import InputError
from ..jobs.machine_faults import refuse_machine_fault
from ..jobs.wording import extra_hint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"default": "#0b5f85", "role": "#b4500b", "trait": "#00775a"}
QUIET = "#59606d"

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Source Sans 3", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    # Names are text: a price in dollars is no formula.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": "#1d2129",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "persona-atlas",
    "pdf.fonttype": 42,
}


def require_matplotlib() -> ModuleType:
    """Return matplotlib, or refuse to draw where it is not installed.

    Raises:
        InputError: It is not.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError(
            "figures are drawn with matplotlib, which is not installed.",
            code="not_installed",
            field="--png",
            hint=f"{extra_hint('figures')}.",
        ) from error
    return mpl


def require_format(path: Path) -> None:
    """Refuse a file whose name does not end with a format that matplotlib writes.

    Args:
        path: The file.

    Raises:
        InputError: matplotlib is not installed, or does not know the format.
    """
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    # Without a suffix matplotlib would write a file of another name.
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(
            f"{path.name!r} names no format of a picture that is known.",
            code="bad_format",
            field="--png",
            hint="End its name with .png, .svg or .pdf.",
        )


def caption(figure: Figure, title: str, lines: Sequence[str]) -> None:
    """Write a title above a figure and lines of small print below it.

    Args:
        figure: The figure.
        title: The title.
        lines: The lines, as wide as the figure.
    """
    figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
    figure.text(0.01, 0, "\n".join(lines), fontsize=7, color=QUIET, va="top")


def save_picture(figure: Figure, path: Path) -> None:
    """Write one figure to a file.

    Raises:
        InputError: It cannot be written, or its name says no format; see ``require_format``.
    """
    require_format(path)
    try:
        figure.savefig(path, dpi=200, bbox_inches="tight", pad_inches=0.12)
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}.",
            code="not_writable",
            field="--png",
            hint="Choose a file in an existing, writable folder.",
        ) from error
