"""The figures of a report for papers, drawn with matplotlib: PNG at 300 dots per inch, and SVG and PDF.

matplotlib is an extra, because only these figures need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...jobs.errors import InputError
from ...jobs.machine_faults import refuse_machine_fault
from ...storage.derived.reductions import Reduction
from ..plotting import COLOURS, QUIET, STYLE, require_matplotlib
from ..reliability import TRUSTED_COSINE
from .histograms import Histograms, histograms_of
from .labels import SIDES, place_labels
from .notes import ALIGNED
from .numbers import Numbers, numbers_of
from .origin import Origin
from .spaces import SHARES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
_LINES = {"default": "-", "role": "--", "trait": ":"}
_RAMP = ("#9c3d00", "#d98a4a", "#c4c1bb", "#6ba5c4", "#0b4f78")
_MOST_ROWS = 45
"""Rows of a spectrum; of more personas the two ends are shown."""


def write_figures(
    origin: Origin,
    reduction: Reduction,
    folder: Path,
    layer: int | None = None,
    *,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw the figures of one layer and write each in several formats; figures without data are left out.

    Args:
        origin: Where the reduction comes from.
        reduction: The reduction.
        folder: Folder for the files, which is made if need be.
        layer: 0-based layer; None: the one at which the report opens.
        formats: Formats to write: ``png``, ``svg``, ``pdf``.

    Returns:
        The files, of which there may be none.

    Raises:
        InputError: matplotlib is not installed, or the folder cannot be written.
    """
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    layer = origin.start_layer if layer is None else layer
    at = reduction.position(layer)
    numbers, histograms = numbers_of(reduction), histograms_of(reduction, origin.kinds_N)
    drawings: dict[str, Callable[[Figure], bool]] = {
        "map": lambda figure: _map(figure, numbers, at),
        "roles": lambda figure: _roles(figure, numbers, at),
        "traits": lambda figure: _traits(figure, numbers, at),
        "layers": lambda figure: _layers(figure, numbers),
        "variance": lambda figure: _variance(figure, numbers, at),
        "rollouts": lambda figure: _rollouts(figure, histograms, reduction, at),
    }
    written: list[Path] = []
    with mpl.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = Figure()
            if draw(figure):
                written += _save(figure, folder, name if name == "layers" else f"{name}-layer-{layer}", formats)
    return written


def _save(figure: Figure, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    paths = [folder / f"{name}.{suffix}" for suffix in formats]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            # Without the date, so that the same reduction gives the same file.
            dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:], {})
            figure.savefig(path, dpi=300, metadata=dated)
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}.",
            code="not_writable",
            field="--png",
            hint="Choose an existing, writable folder or a new one in it.",
        ) from error
    return paths


def _map(figure: Figure, numbers: Numbers, at: int) -> bool:
    from matplotlib.colors import LinearSegmentedColormap

    space = numbers.spaces.get("roles")
    if space is None or space.roles_LPC is None or not np.isfinite(space.roles_LPC[at]).all():
        return False
    figure.set_size_inches(7.2, 4.9)
    ax = figure.add_subplot()
    x, y = space.roles_LPC[at, :, 0], space.roles_LPC[at, :, 1]
    z = numbers.z_LP[at] if numbers.z_LP is not None else np.full(len(x), np.nan)
    if np.isfinite(z).all():
        colours = LinearSegmentedColormap.from_list("axis", _RAMP)
        dots = ax.scatter(
            x, y, c=z, cmap=colours, vmin=-2.5, vmax=2.5, s=34, edgecolors="white", linewidths=0.6, zorder=3
        )
        bar = figure.colorbar(dots, ax=ax, shrink=0.6, aspect=26, pad=0.02)
        bar.set_label("projection on the axis, z-score among the roles\n(higher is nearer the Assistant)", fontsize=8)
        bar.outline.set_visible(False)
    else:
        ax.scatter(x, y, color=QUIET, s=34, edgecolors="white", linewidths=0.6, zorder=3)
    if space.default_LC is not None and np.isfinite(space.default_LC[at]).all():
        own = space.default_LC[at]
        ax.scatter(
            own[:1],
            own[1:2],
            marker="*",
            s=150,
            color=COLOURS["default"],
            edgecolors="white",
            linewidths=0.6,
            zorder=4,
        )
        x, y = np.append(x, own[0]), np.append(y, own[1])
    share = 100 * space.share_LC[at]
    ax.set_xlabel(f"PC1, {share[0]:.0f} % of the variance of the role vectors")
    ax.set_ylabel(f"PC2, {share[1]:.0f} %")
    ax.margins(0.07)
    _names(figure, ax, x, y, [_readable(name) for name in numbers.roles])
    return True


def _names(figure: Figure, ax: Axes, x: np.ndarray, y: np.ndarray, roles: list[str]) -> None:
    """Name the points for which there is room; a point after the roles is the default Assistant."""
    size = 7.5
    figure.draw_without_rendering()
    # Places in points, so that letters have a size.
    box, points = ax.get_window_extent(), ax.transData.transform(np.stack([x, y], axis=1))
    points = (points - [box.x0, box.y0]) * 72 / figure.dpi
    room = box.width * 72 / figure.dpi, box.height * 72 / figure.dpi
    names = [*roles, "the default Assistant"][: len(x)]
    default = range(len(roles), len(x))
    for i, side in place_labels(points[:, 0], points[:, 1], names, size, room, default).items():
        dx, dy = SIDES[side]
        is_default = i in default
        ax.annotate(
            names[i],
            (float(x[i]), float(y[i])),
            xytext=(dx * (7 if is_default else 5), dy * (7 if is_default else 5)),
            textcoords="offset points",
            ha={"right": "left", "left": "right"}.get(side, "center"),
            va={"above": "bottom", "below": "top"}.get(side, "center"),
            fontsize=size,
            fontweight="bold" if is_default else "normal",
            color=COLOURS["default"] if is_default else "#1d2129",
            zorder=5,
        )


def _roles(figure: Figure, numbers: Numbers, at: int) -> bool:
    if numbers.projection_LP is None or not np.isfinite(numbers.projection_LP[at]).any():
        return False
    values = [*numbers.projection_LP[at]]
    lines = [(name, "role") for name in numbers.roles]
    intervals = (
        [*numbers.interval_2LP[:, at].T] if numbers.interval_2LP is not None else [np.full(2, np.nan)] * len(values)
    )
    if numbers.default_L is not None:
        values.append(numbers.default_L[at])
        lines.append(("the default Assistant", "default"))
        own = numbers.default_interval_2L
        intervals.append(np.full(2, np.nan) if own is None else own[:, at])
    ax = _ranked(figure, np.array(values), np.array(intervals), lines)
    ax.set_xlabel("projection on +axis (right is toward the Assistant)")
    return True


def _traits(figure: Figure, numbers: Numbers, at: int) -> bool:
    if numbers.trait_cosine_LT is None or not np.isfinite(numbers.trait_cosine_LT[at]).any():
        return False
    values = numbers.trait_cosine_LT[at]
    ax = _ranked(figure, values, np.full((len(values), 2), np.nan), [(name, "trait") for name in numbers.traits])
    ax.axvline(0, color=QUIET, linewidth=0.8)
    ax.set_xlabel("cosine of the trait vector with the axis (right leads toward the Assistant)")
    return True


def _ranked(figure: Figure, values_N: np.ndarray, intervals_N2: np.ndarray, lines: list[tuple[str, str]]) -> Axes:
    """Draw a row per persona, the lowest at the bottom; of many the two ends only."""
    ranked: list[int | None] = [i for i in np.argsort(values_N, kind="stable").tolist() if np.isfinite(values_N[i])]
    left_out = 0
    if len(ranked) > _MOST_ROWS:
        half = _MOST_ROWS // 2
        default = [i for i in ranked[half:-half] if i is not None and lines[i][1] == "default"]
        left_out = len(ranked) - 2 * half - len(default)
        ranked = [*ranked[:half], *default, None, *ranked[-half:]]
    figure.set_size_inches(5.6, 1.1 + 0.165 * len(ranked))
    ax = figure.add_subplot()
    for row, i in enumerate(ranked):
        if i is None:
            continue
        kind = lines[i][1]
        if np.isfinite(intervals_N2[i]).all():
            ax.plot(intervals_N2[i], [row, row], color=COLOURS[kind], linewidth=1.1, alpha=0.6)
        marker = {"default": "*", "role": "o", "trait": "D"}[kind]
        ax.plot(values_N[i], row, marker, color=COLOURS[kind], markersize={"default": 9, "role": 4.5, "trait": 4}[kind])
    names = [f"… {left_out} more" if i is None else _readable(lines[i][0]) for i in ranked]
    ax.set_yticks(range(len(ranked)), names, fontsize=7.5, color="#1d2129")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.8, len(ranked) - 0.2)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    return ax


def _layers(figure: Figure, numbers: Numbers) -> bool:
    panels = [
        ("z-score of the default\namong the roles", numbers.strength_L, None, None, "default"),
        (
            "cosine of the axis with\nanother estimate",
            numbers.split_half_L,
            numbers.axis_interval_2L,
            TRUSTED_COSINE,
            "default",
        ),
        ("cosine of PC1\nwith the axis", numbers.pc1_L, numbers.pc1_interval_2L, ALIGNED, "role"),
    ]
    panels = [panel for panel in panels if panel[1] is not None and np.isfinite(panel[1]).any()]
    if not panels:
        return False
    figure.set_size_inches(2.5 * len(panels), 2.3)
    for ax, (title, values, interval, floor, kind) in zip(
        np.ravel(figure.subplots(1, len(panels))), panels, strict=True
    ):
        if interval is not None:
            ax.fill_between(numbers.layers, interval[0], interval[1], color=COLOURS[kind], alpha=0.2, linewidth=0)
        ax.plot(numbers.layers, values, color=COLOURS[kind], marker="o" if len(numbers.layers) == 1 else None)
        if floor is not None:
            ax.axhline(floor, color=QUIET, linestyle="--", linewidth=0.8)
        ax.set_xlabel("layer")
        ax.set_ylabel(title, fontsize=8)
        if interval is None and floor is None:
            ax.set_ylim(bottom=min(0.0, float(np.nanmin(values))))
    return True


def _variance(figure: Figure, numbers: Numbers, at: int) -> bool:
    styles = {
        "roles": ("role", "-", "roles"),
        "zscored": ("default", "--", "roles, z-scored"),
        "traits": ("trait", ":", "trait vectors"),
    }
    there = {name: space for name, space in numbers.spaces.items() if np.isfinite(space.cumulative_LM[at]).all()}
    if not there:
        return False
    figure.set_size_inches(4.2, 3.0)
    ax = figure.add_subplot()
    for name, space in there.items():
        kind, line, label = styles[name]
        components = np.arange(1, space.cumulative_LM.shape[1] + 1)
        ax.plot(components, 100 * space.cumulative_LM[at], line, color=COLOURS[kind], label=label)
    for share in SHARES:
        ax.axhline(100 * share, color=QUIET, linestyle="--", linewidth=0.7)
    # As on the page: a quarter more components than 90 % of the variance take.
    ax.set_xlim(0.5, max(10.5, 1.25 * max(int(space.needed_SL[-1, at]) for space in there.values())))
    ax.set_ylim(0, 102)
    ax.set_xlabel("number of components")
    ax.set_ylabel("cumulative variance, %")
    ax.legend(loc="lower right", fontsize=8)
    return True


def _rollouts(figure: Figure, histograms: Histograms | None, reduction: Reduction, at: int) -> bool:
    if histograms is None or not np.isfinite(histograms.range_L2[at]).all():
        return False
    figure.set_size_inches(6.0, 3.0)
    ax = figure.add_subplot()
    low, high = histograms.range_L2[at]
    edges = np.linspace(low, high, histograms.counts_LKB.shape[2] + 1)
    for kind, total, counts_B in zip(histograms.kinds, histograms.totals, histograms.counts_LKB[at], strict=True):
        colour, line = COLOURS.get(kind, QUIET), _LINES.get(kind, "-")
        share_B = 100 * counts_B / max(total, 1)
        ax.stairs(share_B, edges, fill=True, color=colour, alpha=0.15)
        ax.stairs(share_B, edges, color=colour, linestyle=line, linewidth=1.3, label=f"{kind} (n = {total:,})")
    if reduction.floor_on_axis is not None:
        for label, floor in zip(reduction.threshold_labels, reduction.floor_on_axis[:, at], strict=True):
            if np.isfinite(floor):
                ax.axvline(float(floor), color="#1d2129", linestyle=":", linewidth=0.9)
                ax.annotate(
                    label,
                    (float(floor), 1.01),
                    xycoords=("data", "axes fraction"),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                )
    ax.set_xlabel("projection on +axis; dotted: floors on +axis, labelled by their percentile on −axis")  # noqa: RUF001
    ax.set_ylabel("% of the kind's rollouts")
    ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=3)
    return True


def _readable(name: str) -> str:
    return name.replace("_", " ")
