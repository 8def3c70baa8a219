"""The report of a reduction: one self-contained HTML file, which needs no network to open."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go

from ..jobs.wording import count_of
from ..jobs.work.rollouts import served_text
from ..storage.derived.reductions import Reduction
from ..storage.format import layout
from ..storage.query.run import Run
from . import plots
from .summary import Summary, summarise

_STYLE = """
body { font-family: system-ui, sans-serif; color: #23262f; background: #fff; max-width: 1080px; margin: 2rem auto;
       padding: 0 1.5rem; line-height: 1.5; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .3rem; }
p { max-width: 46rem; }
.quiet { color: #666b7a; }
.note { border-left: 4px solid #d1782c; background: #fdf5ee; padding: .6rem 1rem; max-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem 1.4rem .2rem 0; text-align: left; border-bottom: 1px solid #eceef2; font-weight: normal; }
th { color: #666b7a; font-size: .9rem; }
td.number, th.number { text-align: right; }
.columns { display: flex; flex-wrap: wrap; gap: 3rem; }
"""


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


def render_report(run: Run, reduction: Reduction) -> str:
    """Render the report of a reduction as one HTML page, with plotly's script embedded.

    Args:
        run: The run.
        reduction: A reduction of it.
    """
    found = summarise(run, reduction)
    sections = [_head(run, found), *_plots(run, reduction, found), _tables(found), _provenance(run, reduction)]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Persona Atlas: {escape(run.record.spec.model.display_name)}</title>"
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _head(run: Run, found: Summary) -> str:
    spec = run.record.spec
    complete = (
        ""
        if found.units_done == found.units_planned
        else (f"<p class='note'>The run is not complete: {found.units_done} of {found.units_planned} units.</p>")
    )
    return (
        f"<h1>Personas of {escape(spec.model.display_name)}</h1>"
        f"<p class='quiet'>{count_of(found.rollouts, 'rollout')}, {len(run.layers)} of "
        f"{count_of(run.record.model.n_layers, 'layer')}, "
        f"shown at layer {found.layer}; sampled at temperature {spec.sampling.temperature:g}, at most "
        f"{count_of(spec.sampling.max_new_tokens, 'token')}.</p>"
        f"{complete}{_rows_concerned(run)}<p class='note'>{escape(found.filter_note)}</p>"
        + "".join(f"<p class='note'>{escape(note)}</p>" for note in found.notes)
    )


def _rows_concerned(run: Run) -> str:
    """Name the rows whose texts were not taken as they are, as the run's record counts them."""
    counts: dict[str, int] = run.record.rendering.get("rows", {})
    notes = (f"{name.replace('_', ' ')}: {count_of(number, 'row')}" for name, number in counts.items())
    return "".join(f"<p class='note'>{escape(note)} (docs/engine.md).</p>" for note in notes)


def _plots(run: Run, reduction: Reduction, found: Summary) -> list[str]:
    parts: list[tuple[str, str, go.Figure]] = []
    has_pca, has_axis = (found.layer not in reduction.undefined(what) for what in ("pca", "axis"))
    if has_pca and reduction.pca_components is not None and reduction.pca_components.shape[1] >= 2:
        parts.append(
            (
                "The persona map",
                "Each point is a role: the mean activation of all its responses. PCA is centred on the roles' mean.",
                plots.persona_map(reduction, found.layer),
            )
        )
        parts.append(
            (
                "Variance by component",
                f"70 % of the variance at layer {found.layer} is in "
                f"{count_of(found.components_for_70 or 0, 'component')}.",
                plots.variance_curve(reduction, found.layer),
            )
        )
    if reduction.axis is not None and len(reduction.undefined("axis")) < len(reduction.layers):
        parts.append(
            (
                "The Assistant Axis by layer",
                "The axis is the mean activation of the default Assistant minus the mean of the role vectors.",
                plots.axis_by_layer(reduction),
            )
        )
    if has_axis and reduction.projections is not None and reduction.projection_rows is not None:
        at = reduction.position(found.layer)
        rows = dict(zip(run.index["row"].to_pylist(), run.index["kind"].to_pylist(), strict=True))
        kinds = [rows[row] for row in reduction.projection_rows.tolist()]
        parts.append(
            (
                "Single rollouts on the axis",
                "Projections are dot products with the unit axis and are not centred: only their differences have a "
                "meaning. Dotted lines are floors on the axis. A label is the percentile on the opposite direction, so "
                "a quarter of all rollouts lies above p0.25.",
                plots.projection_histogram(reduction.projections[:, at], kinds, found.floors),
            )
        )
    return [
        f"<h2>{escape(title)}</h2><p>{escape(text)}</p>{_embed(figure, with_script=position == 0)}"
        for position, (title, text, figure) in enumerate(parts)
    ]


def _embed(figure: go.Figure, *, with_script: bool) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=with_script, config={"displaylogo": False})


def _tables(found: Summary) -> str:
    if not found.roles:
        return ""
    shown = found.roles
    if found.default_projection is not None and found.default_z is not None:
        shown = (("(the default Assistant)", found.default_projection, found.default_z), *shown)
    lines = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td class='number'>{value:+.2f}</td>"
        f"<td class='number'>{z:+.2f}</td></tr>"
        for name, value, z in shown
    )
    floors = "".join(
        f"<tr><td>{label}</td><td class='number'>{value:+.3f}</td><td class='number'>{-value:+.3f}</td></tr>"
        for label, value in found.floors.items()
    )
    return (
        f"<div class='columns'><div><h2>Roles along the axis</h2><table><tr><th>role</th><th class='number'>projection"
        f"</th><th class='number'>z</th></tr>{lines}</table></div><div><h2>Thresholds at layer {found.layer}</h2>"
        "<table><tr><th>label</th><th class='number'>floor on the axis</th><th class='number'>cap on -axis</th></tr>"
        f"{floors}</table></div></div>"
    )


def _provenance(run: Run, reduction: Reduction) -> str:
    record = run.record
    rows: dict[str, Any] = {
        "store": run.url,
        "model": record.spec.model.source,
        "model files": record.model.fingerprint[:16],
        "plan": record.plan_digest[:16],
        "reduction": reduction.reduction_id,
        "pooling": f"{reduction.facts['hook_point']}/{reduction.facts['pooling']}",
        "empty responses": run.num_empty_responses,
        **({"server's tokens": served_text(run.served_tokens)} if run.served_tokens else {}),
        "created": record.created_at,
        **{name: value for name, value in record.versions.items() if value},
    }
    lines = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<h2>Provenance</h2><table>{lines}</table>"
