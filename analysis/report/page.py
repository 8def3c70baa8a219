"""Put the page of a report together.

The charts are drawn as SVG by a script of this project, 45 kB; plotly's smallest bundle with a 3D map has 1.8 MB.
"""

from __future__ import annotations

from ...storage.derived.reductions import Reduction
from ...storage.format import layout
from ...storage.query.run import Run
from . import sections, tables
from .document import LayerSlider, asset, document
from .histograms import histograms_of
from .notes import general_notes
from .numbers import numbers_of
from .origin import Origin, origin_of_run
from .payload import payload

_STYLES = ("charts.css", "page.css")
_SCRIPTS = ("base.js", "personas.js", "map.js", "spectrum.js", "charts.js", "app.js")


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
    data = payload(reduction, numbers, origin, histograms, at)
    return document(
        origin.model,
        LayerSlider(data["layers"], data["start"]),
        "\n".join(body),
        data,
        [asset(name) for name in _STYLES],
        [asset(name) for name in _SCRIPTS],
    )
