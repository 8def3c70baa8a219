"""``persona-atlas trajectories``: the drift of the conversations in a store, as tables, a picture or JSON."""

from __future__ import annotations

import click

from ....analysis.axis_source import open_axis
from ....analysis.dialogues.drift import DriftSettings, study_drift
from ....analysis.dialogues.picture import write_picture
from ....analysis.dialogues.trajectories import Window
from ....jobs.specs.store_spec import S3Access
from ....storage.query.run import open_run
from .. import output
from ..options import (
    axis_option,
    by_option,
    endpoint_option,
    json_option,
    layer_option,
    reading_access_options,
    reduction_option,
    store_argument,
    transfer_option,
)
from ..result_files import picture_to_write
from .turns_output import print_drift


@click.command()
@store_argument
@axis_option(required=True)
@layer_option
@reduction_option
@by_option
@click.option(
    "--first",
    type=click.IntRange(min=1),
    default=Window.first,
    show_default=True,
    help="Replies whose mean is the beginning of a drop.",
)
@click.option(
    "--last", type=click.IntRange(min=1), default=Window.last, show_default=True, help="Replies whose mean is its end."
)
@click.option(
    "--most",
    type=click.IntRange(min=0),
    default=DriftSettings.most,
    show_default=True,
    help="Replies to show among those that moved most, in each direction.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the resampling.")
@transfer_option
@click.option("--png", default=None, type=click.Path(dir_okay=False), help="File for the picture.")
@endpoint_option
@reading_access_options
@json_option
def trajectories(
    store_url: str,
    axis: str,
    layer: int | None,
    reduction: str | None,
    by: str | None,
    first: int,
    last: int,
    most: int,
    seed: int,
    transfer: bool,
    png: str | None,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> None:
    """Show how the conversations in STORE move along an axis: trajectories, drops, and the replies that moved most.

    STORE is a run that extract made of conversations, or one of generated dialogues. No model is loaded. Intervals and
    tests are over conversations.
    """
    picture = picture_to_write(png)
    settings = DriftSettings(layer, Window(first, last), by=by, most=most, seed=seed, transfer=transfer)
    opened = open_axis(axis, reduction=reduction, endpoint_url=endpoint_url, access=access)
    results = study_drift(open_run(store_url, endpoint_url, access), opened, settings)
    if picture is not None:
        write_picture(results, picture)
    if as_json:
        output.document(results.as_dict() | {"png": None if picture is None else str(picture)})
    else:
        print_drift(results, picture)
