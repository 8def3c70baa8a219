"""``persona-atlas reduce``: compute means, axis, PCA, projections and thresholds from the committed units."""

from __future__ import annotations

import click

from ....analysis.reduce import reduce_run
from ....analysis.reduction.document import as_document
from ....analysis.reduction.settings import MIN_COUNT, MIN_SCORE
from ....analysis.summary import summarise
from ....analysis.thresholds import PERCENTILES
from ....jobs.errors import InputError
from ....jobs.poolings import DEFAULT_POOLING
from ....jobs.specs.store_spec import S3Access
from ....storage.derived.scores import NO_JUDGE
from ....storage.query.run import open_run
from ....storage.query.selection import layer_positions
from .. import output, summary_text
from ..options import access_options, endpoint_option, json_option, store_argument


@click.command()
@store_argument
@click.option(
    "--judge",
    default=None,
    metavar="NAME",
    help=f"Judge whose scores decide which rollouts count; by default the only one there is. {NO_JUDGE}: all count.",
)
@click.option(
    "--min-score",
    type=float,
    default=None,
    help=f"Least score of a role's rollout that counts, 0, 1, 2 or 3; with a judge {MIN_SCORE:g} by default. Scores "
    "such as 2.6 are rounded first, a half to the even number.",
)
@click.option(
    "--min-count",
    type=int,
    default=None,
    help=f"Least number of rollouts behind a role's vector, and of pairs behind a trait's; with a judge {MIN_COUNT} by "
    "default, as in the paper (50 in its released code).",
)
@click.option(
    "--percentiles",
    default=None,
    metavar="LIST",
    help=f"Percentiles of the thresholds, by default {','.join(map(str, PERCENTILES))}; of the projection on -axis.",
)
@click.option("--hook-point", default=None, help="Hook point to reduce; by default resid_post if captured.")
@click.option(
    "--pooling", default=None, help=f"Pooling to reduce; by default {DEFAULT_POOLING} if captured, else the first."
)
@click.option("--layer", type=int, default=None, help="Layer to summarise; by default the middle one.")
@endpoint_option
@access_options
@json_option
def reduce(
    store_url: str,
    judge: str | None,
    min_score: float | None,
    min_count: int | None,
    percentiles: str | None,
    hook_point: str | None,
    pooling: str | None,
    layer: int | None,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> None:
    """Reduce the run at STORE at every captured layer, and store the result in it.

    What was read before is not read again: new units and new scores cost what is new.
    """
    run = open_run(store_url, endpoint_url, access)
    if layer is not None:
        layer_positions(layer, run.layers, run.record.model.n_layers)
    reduction = reduce_run(
        run,
        hook_point=hook_point,
        pooling=pooling,
        judge=judge,
        min_score=min_score,
        min_count=min_count,
        percentiles=None if percentiles is None else _numbers(percentiles),
        say=output.progress().say,
    )
    if layer is not None and layer in reduction.undefined("axis"):
        # Raises, and says why: what was asked for is not there. The other layers are stored.
        reduction.axis_at(layer)
    found = summarise(run, reduction, layer)
    if as_json:
        head = {"reduction": reduction.reduction_id, "store": run.url}
        output.document(head | found.as_dict() | as_document(reduction))
        return
    summary_text.print_summary(found)
    output.text(f"Reduction {reduction.reduction_id} of {run.url}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"must be numbers with commas between them, but is {text!r}.",
            code="bad_number",
            field="--percentiles",
            hint="For example --percentiles 1,25,50,75.",
        ) from error
