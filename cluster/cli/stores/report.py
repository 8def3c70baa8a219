"""``persona-atlas report``: write the charts and tables of a run as one HTML file, and figures for papers."""

from __future__ import annotations

from pathlib import Path

import click

from ....analysis.reduce import reduce_again
from ....analysis.report import origin_of_run, render_page
from ....analysis.report.figures import write_figures
from ....jobs.errors import InputError
from ....jobs.files.user_paths import local_path
from ....jobs.machine_faults import refuse_machine_fault
from ....jobs.specs.store_spec import S3Access
from ....storage.format import layout
from ....storage.query.run import open_run
from ....storage.query.selection import layer_positions
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument


@click.command()
@store_argument
@click.option(
    "--out", type=click.Path(dir_okay=False), default=None, help="File to write; by default report.html in the store."
)
@click.option(
    "--png",
    "figures",
    type=click.Path(file_okay=False),
    default=None,
    help="Folder for the figures as PNG, SVG and PDF; without --out, no HTML is written.",
)
@click.option("--layer", type=int, default=None, help="Layer at which the report opens and that the figures show.")
@endpoint_option
@reading_access_options
@json_option
def report(
    store_url: str,
    out: str | None,
    figures: str | None,
    layer: int | None,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> None:
    """Write the report of the run at STORE: one self-contained HTML file, or its figures with --png."""
    run = open_run(store_url, endpoint_url, access)
    if layer is not None:
        layer_positions(layer, run.layers, run.record.model.n_layers)
    reduction = reduce_again(run, say=output.progress().say)
    origin = origin_of_run(run, reduction)
    place, written = None, []
    if figures is not None:
        written = write_figures(origin, reduction, local_path(figures, "--png"), layer)
    if out is not None:
        place = _write(local_path(out, "--out"), render_page(origin, reduction, layer))
    elif figures is None:
        run.location.write(layout.REPORT, render_page(origin, reduction, layer).encode())
        place = f"{run.url}/{layout.REPORT}"
    if as_json:
        names = [str(path) for path in written]
        output.document({"report": place, "figures": names, "reduction": reduction.reduction_id})
        return
    if place is not None:
        output.text(f"Report:  {place}")
    for path in written:
        output.text(f"Figure:  {path}")


def _write(target: Path, page: str) -> str:
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"{target} cannot be written: {error.strerror or error}.",
            code="not_writable",
            field="--out",
            hint="Choose a file in an existing, writable folder.",
        ) from error
    return str(target)
