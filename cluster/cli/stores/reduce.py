"""``persona-atlas reduce``: compute means, axis, PCA, projections and thresholds from the committed units."""

from __future__ import annotations

import click

from ....analysis.reduce import reduce_run
from ....analysis.summary import summarise
from ....jobs.poolings import DEFAULT_POOLING
from ....jobs.specs.store_spec import S3Access
from ....storage.query.run import open_run
from ....storage.query.selection import layer_positions
from .. import output, summary_text
from ..options import access_options, endpoint_option, json_option, store_argument


@click.command()
@store_argument
@click.option(
    "--pooling", default=None, help=f"Pooling to reduce; by default {DEFAULT_POOLING} if captured, else the first."
)
@click.option("--layer", type=int, default=None, help="Layer to summarise; by default the middle one.")
@endpoint_option
@access_options
@json_option
def reduce(
    store_url: str, pooling: str | None, layer: int | None, endpoint_url: str | None, access: S3Access, as_json: bool
) -> None:
    """Reduce the run at STORE at every captured layer, and store the result in it."""
    run = open_run(store_url, endpoint_url, access)
    if layer is not None:
        layer_positions(layer, run.layers, run.record.model.n_layers)
    reduction = reduce_run(run, pooling=pooling, say=output.progress().say)
    if layer is not None and layer in reduction.undefined("axis"):
        # Raises, and says why: what was asked for is not there. The other layers are stored.
        reduction.axis_at(layer)
    found = summarise(run, reduction, layer)
    if as_json:
        output.document({"reduction": reduction.reduction_id, "store": run.url} | found.as_dict())
        return
    summary_text.print_summary(found)
    output.text(f"Reduction {reduction.reduction_id} of {run.url}")
