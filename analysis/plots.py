"""The plots of a report, as plotly figures. Pure functions of a reduction.

Axes: P roles, L layers, K components, N rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..storage.derived.reductions import Reduction
from .pca import Pca
from .summary import VARIANCE_SHARE, standardise

INK = "#23262f"
FAINT = "#d9dce3"
KIND_COLOURS = {"default": "#0b6e99", "role": "#d1782c", "trait": "#8a8fa3"}
_AXIS_SCALE = [[0.0, "#a63d13"], [0.35, "#e3a46b"], [0.5, "#d8d5cf"], [0.65, "#7fb3c8"], [1.0, "#0b4f6c"]]
_MAX_LABELS = 40
"""Number of names that fit on a map; of more roles only the outermost are labelled, the others on hover."""


def persona_map(reduction: Reduction, layer: int) -> go.Figure:
    """Plot the roles and the default Assistant in the plane of PC1 and PC2, coloured by projection on the axis.

    Args:
        reduction: A reduction with PCA.
        layer: 0-based layer, one of the reduction's, at which PCA is defined.
    """
    at = reduction.position(layer)
    assert reduction.role_vectors is not None
    pca = _pca_at(reduction, at)
    scores_PK = pca.scores(reduction.role_vectors[:, at : at + 1].astype(np.float64))[:, 0]
    x, y = scores_PK[:, 0], scores_PK[:, 1]
    colour, title = x, "PC1"
    if reduction.axis is not None and layer not in reduction.undefined("axis"):
        direction = reduction.axis[at] / np.linalg.norm(reduction.axis[at])
        raw = reduction.role_vectors[:, at] @ direction
        colour, title = standardise(raw, raw), "projection<br>on the axis<br>(z)"
    bound = float(np.abs(colour).max()) or 1.0
    star = None
    if reduction.default_vector is not None:
        place = pca.scores(reduction.default_vector[None, at : at + 1].astype(np.float64))[0, 0]
        star = float(place[0]), float(place[1])
    labelled = _labelled_points(x, y)
    texts = [_readable(name) if i in labelled else "" for i, name in enumerate(reduction.role_names)]
    figure = go.Figure()
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers+text",
        text=texts,
        textposition=_label_positions(x, y, texts, star),
        textfont={"size": 12, "color": INK},
        hovertext=[
            f"{_readable(n)}<br>{title.replace('<br>', ' ')} {c:+.2f}"
            for n, c in zip(reduction.role_names, colour, strict=True)
        ],
        hoverinfo="text",
        cliponaxis=False,
        marker={
            "size": 11 if len(texts) <= _MAX_LABELS else 8,
            "color": colour,
            "cmin": -bound,
            "cmax": bound,
            "colorscale": _AXIS_SCALE,
            "colorbar": {"title": {"text": title, "side": "top"}, "thickness": 12, "len": 0.7, "outlinewidth": 0},
            "line": {"width": 1, "color": "white"},
        },
        showlegend=False,
    )
    if star is not None:
        figure.add_scatter(
            x=[star[0]],
            y=[star[1]],
            mode="markers+text",
            text=[_STAR_LABEL],
            textposition="top center",
            textfont={"size": 13, "color": KIND_COLOURS["default"]},
            marker={"size": 16, "symbol": "star", "color": KIND_COLOURS["default"]},
            hoverinfo="text",
            showlegend=False,
        )
    share = 100 * pca.variance_ratio_LM[0]
    figure.update_xaxes(title=f"PC1, {share[0]:.0f} % of the variance, oriented toward the Assistant")
    figure.update_yaxes(title=f"PC2, {share[1]:.0f} %")
    return _styled(figure, height=640)


def variance_curve(reduction: Reduction, layer: int) -> go.Figure:
    """Plot the cumulative share of variance over components at a layer, with the 70 % line.

    Args:
        reduction: A reduction with PCA.
        layer: 0-based layer, one of the reduction's.
    """
    assert reduction.pca_variance_ratio is not None
    at = reduction.position(layer)
    figure = go.Figure()
    cumulative_LK = 100 * np.cumsum(reduction.pca_variance_ratio, axis=1)
    components = np.arange(1, cumulative_LK.shape[1] + 1)
    # Layers without components are NaN; the one that is plotted has some.
    lowest, highest = np.nanmin(cumulative_LK, axis=0), np.nanmax(cumulative_LK, axis=0)
    figure.add_scatter(
        x=[*components, *components[::-1]],
        y=[*highest, *lowest[::-1]],
        fill="toself",
        fillcolor="rgba(127,179,200,0.25)",
        line={"width": 0},
        name="range over layers",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=components,
        y=cumulative_LK[at],
        mode="lines+markers" if len(components) <= _MAX_LABELS else "lines",
        line={"color": "#0b4f6c", "width": 2},
        marker={"size": 6},
        name=f"layer {layer}",
    )
    figure.add_hline(y=100 * VARIANCE_SHARE, line={"color": "#a63d13", "dash": "dot", "width": 1.5})
    figure.add_annotation(
        x=1, xref="paper", y=100 * VARIANCE_SHARE, text="70 %", showarrow=False, yshift=9, font={"color": "#a63d13"}
    )
    figure.update_xaxes(title="components")
    figure.update_yaxes(title="cumulative variance of the role vectors, %", range=[0, 102])
    return _styled(figure, height=400)


def axis_by_layer(reduction: Reduction) -> go.Figure:
    """Plot over layers the z-score of the default Assistant among the roles, and the cosine of PC1 with the axis.

    Args:
        reduction: A reduction with an axis; the cosine is plotted only if it has PCA too.
    """
    assert reduction.axis is not None
    assert reduction.role_vectors is not None
    assert reduction.default_vector is not None
    layers = list(reduction.layers)
    undefined = reduction.undefined("axis")
    unit_LD = reduction.axis / np.linalg.norm(reduction.axis, axis=1, keepdims=True)
    roles_PL = np.einsum("pld,ld->pl", reduction.role_vectors.astype(np.float64), unit_LD)
    default_L = np.einsum("ld,ld->l", reduction.default_vector.astype(np.float64), unit_LD)
    # None leaves a gap in the line.
    z_L = [
        None if layer in undefined else float(standardise(default_L[i : i + 1], roles_PL[:, i])[0])
        for i, layer in enumerate(layers)
    ]
    has_cosine = reduction.pc1_axis_cosine is not None
    figure = make_subplots(rows=1, cols=2 if has_cosine else 1, horizontal_spacing=0.12)
    line = {"x": layers, "mode": "lines+markers", "showlegend": False, "marker": {"size": 6}}
    figure.add_scatter(y=z_L, line={"color": KIND_COLOURS["default"], "width": 2}, row=1, col=1, **line)
    figure.update_yaxes(title="default Assistant, z-score among the roles", rangemode="tozero", row=1, col=1)
    if reduction.pc1_axis_cosine is not None:
        cosine_L = [float(value) if np.isfinite(value) else None for value in reduction.pc1_axis_cosine]
        figure.add_scatter(y=cosine_L, line={"color": KIND_COLOURS["role"], "width": 2}, row=1, col=2, **line)
        figure.update_yaxes(title="cosine of PC1 with the axis", range=[0, 1.02], row=1, col=2)
    figure.update_xaxes(title="layer")
    return _styled(figure, height=380)


def projection_histogram(projections_N: np.ndarray, kinds_N: Sequence[str], floors: dict[str, float]) -> go.Figure:
    """Plot the distribution of single rollouts on the axis, by kind, with the floors.

    Args:
        projections_N: Projections on the axis at one layer; higher is nearer the Assistant.
        kinds_N: Kind of each rollout: ``default``, ``role`` or ``trait``.
        floors: Thresholds on the axis, by label.
    """
    figure = go.Figure()
    edges = np.linspace(projections_N.min(), projections_N.max(), 41)
    kinds = np.asarray(kinds_N)
    for kind, colour in KIND_COLOURS.items():
        of_kind = projections_N[kinds == kind]
        if of_kind.size:
            share, _ = np.histogram(of_kind, bins=edges)
            figure.add_bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=100 * share / of_kind.size,
                width=edges[1] - edges[0],
                name=f"{kind} ({of_kind.size:,})",
                marker={"color": colour, "opacity": 0.55, "line": {"width": 0}},
            )
    for label, value in floors.items():
        figure.add_vline(x=value, line={"color": INK, "dash": "dot", "width": 1})
        figure.add_annotation(x=value, y=1.0, yref="paper", text=label, showarrow=False, yshift=10, font={"size": 11})
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_xaxes(title="projection on the axis (higher is nearer the Assistant)")
    figure.update_yaxes(title="% of the kind's rollouts")
    return _styled(figure, height=400)


def _pca_at(reduction: Reduction, at: int) -> Pca:
    assert reduction.pca_mean is not None
    assert reduction.pca_components is not None
    assert reduction.pca_variance_ratio is not None
    return Pca(
        reduction.pca_mean[at : at + 1].astype(np.float64),
        reduction.pca_components[at : at + 1].astype(np.float64),
        reduction.pca_variance_ratio[at : at + 1].astype(np.float64),
        np.asarray(np.isfinite(reduction.pca_variance_ratio[at : at + 1]).all(axis=1)),
    )


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _labelled_points(x: np.ndarray, y: np.ndarray) -> set[int]:
    """Choose the points to label: the outermost ones, at most ``_MAX_LABELS``."""
    distance = np.hypot(standardise(x, x), standardise(y, y))
    return {int(i) for i in np.argsort(-distance)[:_MAX_LABELS]}


_PLACES = {
    "top center": (0.0, 1.0),
    "bottom center": (0.0, -1.0),
    "middle right": (1.0, 0.0),
    "middle left": (-1.0, 0.0),
}
_STAR_LABEL = "the default Assistant"
_LETTER, _LINE = 0.0085, 0.032
"""Width of a letter and height of a line, as shares of the width and height of the map."""


def _label_positions(x: np.ndarray, y: np.ndarray, texts: Sequence[str], star: tuple[float, float] | None) -> list[str]:
    """Place each label on the side where it overlaps points and other labels least.

    Each label is placed given all others, three times over; the first round knows only the labels before it.
    """
    wide, high = (float(np.ptp(v)) or 1.0 for v in (x, y))
    px, py = x / wide, y / high
    # A box is (x of its centre, y of its centre, half its width); all boxes are one line high.
    points = [(float(a), float(b), 0.008) for a, b in zip(px, py, strict=True)]
    fixed: list[tuple[float, float, float]] = []
    if star is not None:
        at = star[0] / wide, star[1] / high
        fixed = [(*at, 0.012), (at[0], at[1] + 1.2 * _LINE, _LETTER * len(_STAR_LABEL) / 2)]
    positions = ["top center"] * len(texts)
    labels: dict[int, tuple[float, float, float]] = {}
    for _ in range(3):
        for i, text in enumerate(texts):
            if not text:
                continue
            half = _LETTER * len(text) / 2
            others = [*fixed, *(p for j, p in enumerate(points) if j != i), *(b for j, b in labels.items() if j != i)]
            boxes = {
                place: (float(px[i] + dx * (half + 0.015)), float(py[i] + dy * _LINE), half)
                for place, (dx, dy) in _PLACES.items()
            }
            positions[i] = min(boxes, key=lambda place: _overlap(boxes[place], others))
            labels[i] = boxes[positions[i]]
    return positions


def _overlap(box: tuple[float, float, float], others: Sequence[tuple[float, float, float]]) -> float:
    """Compute the area of a box that other boxes overlap."""
    x, y, half = box
    return sum(max(0.0, half + w - abs(x - ox)) * max(0.0, 0.8 * _LINE - abs(y - oy)) for ox, oy, w in others)


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 40, "t": 40, "b": 60},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "y": 1.1, "x": 0},
        hoverlabel={"bgcolor": "white"},
    )
    figure.update_xaxes(gridcolor=FAINT, zerolinecolor=FAINT)
    figure.update_yaxes(gridcolor=FAINT, zerolinecolor=FAINT)
    return figure
