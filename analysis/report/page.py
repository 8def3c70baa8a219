"""Put the page together: one HTML file with style, script and data in it, which loads nothing.

The charts are drawn as SVG by a script of this project, 45 kB; plotly's smallest bundle with a 3D map has 1.8 MB.
"""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from ...storage.derived.reductions import Reduction
from ...storage.format import layout
from ...storage.query.run import Run
from . import sections, tables
from .histograms import histograms_of
from .notes import general_notes
from .numbers import numbers_of
from .origin import Origin, origin_of_run
from .payload import payload

_STYLES = ("charts.css", "page.css")
_SCRIPTS = ("base.js", "personas.js", "map.js", "spectrum.js", "charts.js", "app.js")

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The page may load nothing: a browser refuses every request."""


def write_report(run: Run, reduction: Reduction) -> str:
    """Render the report of a reduction and write it into the run's store.

    Args:
        run: The run.
        reduction: A reduction of it.

    Returns:
        Path or URL of the file.
    """
    run.location.write(layout.REPORT, render_report(run, reduction).encode())
    return f"{run.url}/{layout.REPORT}"


def render_report(run: Run, reduction: Reduction, layer: int | None = None) -> str:
    """Render the report of a run's reduction as one HTML page.

    Args:
        run: The run, of which some texts are read.
        reduction: A reduction of it.
        layer: 0-based layer at which the page opens; None: the middle one.

    Raises:
        StoreError: A committed table is missing or damaged.
    """
    return render_page(origin_of_run(run, reduction), reduction, layer)


def render_page(origin: Origin, reduction: Reduction, layer: int | None = None) -> str:
    """Render the report of any reduction, also of one without a run.

    Args:
        origin: Where the reduction comes from; ``origin_of_vectors`` where there is no run.
        reduction: The reduction; every array of it may be None or hold NaN.
        layer: 0-based layer at which the page opens; None: the middle one.
    """
    numbers = numbers_of(reduction)
    histograms = histograms_of(reduction, origin.kinds_N)
    layer = origin.start_layer if layer is None else layer
    at = reduction.position(layer)
    body = [
        sections.head(numbers, origin, general_notes(reduction, origin)),
        sections.persona_map(reduction, numbers, layer),
        sections.axis_by_layer(numbers),
        sections.spectra(numbers, reduction),
        tables.rollouts(reduction, origin, histograms is not None),
        tables.every_persona(reduction, numbers, origin, at),
        tables.provenance(origin),
    ]
    return _document(
        origin.model, "\n".join(body), payload(reduction, numbers, origin, histograms, at), len(numbers.layers)
    )


def _document(model: str, body: str, data: dict[str, Any], num_layers: int) -> str:
    start = data["start"]
    slider = (
        f"<input type='range' id='layer' min='0' max='{num_layers - 1}' step='1' value='{start}' "
        f"{'disabled ' if num_layers == 1 else ''}aria-label='Layer'>"
    )
    style = "\n".join(_asset(name) for name in _STYLES)
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    return (
        "<!doctype html>\n<html lang='en' data-theme='light'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'><link rel='icon' href='data:,'>"
        f"<title>Persona Atlas: {escape(model)}</title><style>{style}</style></head><body>\n"
        f"<div class='bar'><div><label for='layer'>Layer</label>{slider}<output id='layer-now' for='layer'>layer "
        f"{data['layers'][start]}</output><button type='button' id='theme'>Dark</button></div></div>\n"
        f"<main><noscript><p class='note'>The charts need JavaScript; the tables do not.</p></noscript>\n{body}\n"
        "<footer>Written by Persona Atlas. Method: Lu, Gallagher, Michala, Fish and Lindsey, The Assistant Axis, "
        "arXiv 2601.10387.</footer></main>\n<div class='tip' id='tip' role='status' hidden></div>\n"
        f"<script type='application/json' id='data'>{_json(data)}</script>\n"
        f'<script>(() => {{\n"use strict";\n{script}\n}})();</script>\n</body></html>\n'
    )


def _json(data: dict[str, Any]) -> str:
    """Encode data for a script element, in which no text can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _asset(name: str) -> str:
    return (files(__name__.rpartition(".")[0]) / "assets" / name).read_text(encoding="utf-8")
