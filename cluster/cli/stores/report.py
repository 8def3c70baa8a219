"""``persona-atlas report``: write the charts and tables of a store as one HTML file, and figures for papers."""

from __future__ import annotations

import click

from ....analysis.reduce import reduce_again, without_scores_if_too_few
from ....analysis.report import Origin, origin_of_run, origin_of_vectors, render_page
from ....analysis.report.figures import write_figures
from ....jobs.errors import InputError
from ....jobs.files.user_paths import local_path
from ....jobs.specs.store_spec import S3Access
from ....storage.derived.reductions import Reduction
from ....storage.format import layout
from ....storage.query.run import Run
from ....storage.query.selection import layer_positions
from ....storage.query.vectors import VectorSet, open_vectors
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument
from ..result_files import write_page


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
    help="Folder for the figures as PNG, SVG and PDF; without --out, no HTML is written. Needs matplotlib.",
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
    """Write the report of the run or the imported vectors at STORE: one self-contained HTML file, or its figures.

    A run without a reduction, or with units or scores that came since, is reduced first, by the options of its current
    reduction, and the result becomes the current one. For other options, run reduce before.
    """
    if access.anonymous and out is None and figures is None:
        raise InputError(
            "is needed: a store that is read without credentials cannot be written to.",
            code="read_only",
            field="--out",
            hint="Name a file of this machine, such as --out report.html.",
        )
    store = open_vectors(store_url, endpoint_url, access)
    if layer is not None:
        layer_positions(layer, store.layers, store.n_layers)
    origin, reduction = _numbers(store)
    written = [] if figures is None else write_figures(origin, reduction, local_path(figures, "--png"), layer)
    place = None
    if out is not None:
        path = local_path(out, "--out")
        write_page(path, render_page(origin, reduction, layer), "--out")
        place = str(path)
    elif figures is None:
        store.location.write(layout.REPORT, render_page(origin, reduction, layer).encode())
        place = f"{store.url}/{layout.REPORT}"
    if as_json:
        names = [str(path) for path in written]
        output.document({"report": place, "figures": names, "reduction": reduction.reduction_id})
        return
    if place is not None:
        output.text(f"Report:  {place}")
    for path in written:
        output.text(f"Figure:  {path}")


def _numbers(store: Run | VectorSet) -> tuple[Origin, Reduction]:
    if isinstance(store, VectorSet):
        record = store.record
        lines = {"imported from": record.source, "imported": record.created_at}
        origin = origin_of_vectors(
            store.reduction, record.model, store.url, n_layers=record.n_layers, lines=lines, notes=record.notes
        )
        return origin, store.reduction
    say = output.progress().say
    try:
        reduction = reduce_again(store, say=say)
    except InputError as error:
        reduction = without_scores_if_too_few(store, error, say=say)
    return origin_of_run(store, reduction), reduction
