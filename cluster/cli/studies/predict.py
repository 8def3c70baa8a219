"""``persona-atlas predict``: does the user's message tell where the next reply will lie on an axis?"""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from ....analysis.axis_source import open_axis
from ....analysis.prediction.clusters import Cluster
from ....analysis.prediction.holding_out import FEWEST
from ....analysis.prediction.picture import write_picture
from ....analysis.prediction.predict import PredictionResults, PredictionSettings
from ....analysis.prediction.regression import Fit, Regression
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.query.run import open_run
from ...studies.prediction import PredictionStudy, study_prediction
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
from .turns_output import digits_for, interval, probability, shortened, value

_GROUP = 40
"""Characters of a group's name that a table shows."""


@click.command()
@store_argument
@axis_option(required=True)
@click.option(
    "--embedder",
    required=True,
    metavar="NAME",
    help="A model of sentence-transformers: a Hugging Face id, a directory, or package://module/folder.",
)
@layer_option
@reduction_option
@by_option
@click.option(
    "--folds",
    type=click.IntRange(min=FEWEST),
    default=PredictionSettings.folds,
    show_default=True,
    help="Folds of what is held out; of fewer groups each is one.",
)
@click.option(
    "--permutations",
    type=click.IntRange(min=0),
    default=PredictionSettings.permutations,
    show_default=True,
    help="Permutations of the test; 0 for none.",
)
@click.option(
    "--clusters", type=click.IntRange(min=2), default=None, help="Clusters of messages; by default at most 8."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of folds and resampling.")
@transfer_option
@click.option("--png", default=None, type=click.Path(dir_okay=False), help="File for the picture.")
@endpoint_option
@reading_access_options
@json_option
def predict(
    store_url: str,
    axis: str,
    embedder: str,
    layer: int | None,
    reduction: str | None,
    by: str | None,
    folds: int,
    permutations: int,
    clusters: int | None,
    seed: int,
    transfer: bool,
    png: str | None,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> None:
    """Predict where the replies in STORE lie on an axis from the user's messages before them, by ridge regression.

    STORE is a run that extract made of conversations, or one of generated dialogues. The embedder runs in this process;
    the model of the run does not. R^2 is given in-sample, which flatters, and with conversations, topics, user personas
    and groups held out.
    """
    picture = picture_to_write(png)
    settings = PredictionSettings(folds=folds, permutations=permutations, clusters=clusters, seed=seed)
    opened = open_axis(axis, reduction=reduction, endpoint_url=endpoint_url, access=access)
    study = PredictionStudy(embedder, layer, by, transfer, settings)
    results = study_prediction(open_run(store_url, endpoint_url, access), opened, study, output.progress())
    if picture is not None:
        write_picture(results, picture)
    if as_json:
        output.document(results.as_dict() | {"png": None if picture is None else str(picture)})
    else:
        _print(results, picture)


def _print(results: PredictionResults, picture: Path | None) -> None:
    _print_regression(f"The projection of the reply, layer {results.scale.layer}", results.projection)
    if results.change is not None:
        _print_regression("The change since the reply before", results.change)
    if results.clusters:
        digits = digits_for([abs(bound) for cluster in results.clusters for bound in cluster.interval])
        output.table(
            "Clusters of messages, and of how many conversations, by the mean change that follows; negative is away",
            ["", "effect", "messages", "of", "change", "95 %", "p, Holm", "mostly"],
            [[str(number), *_cluster(cluster, digits)] for number, cluster in enumerate(results.clusters, start=1)],
        )
        output.text("Messages that are nearest to the centre of each cluster:")
        for number, cluster in enumerate(results.clusters, start=1):
            for text in cluster.typical:
                output.text(f"  {number}  {shortened(text)}")
    output.text("training mean, group mean: R^2 of predicting these means of the training part, without the message.")
    for note in results.notes:
        output.text(note)
    if picture is not None:
        output.text(f"Picture: {picture}")


def _print_regression(title: str, found: Regression) -> None:
    replies = count_of(found.num_replies, "reply", "replies")
    output.table(
        f"{title}, by the message before it: {replies} of {count_of(found.num_conversations, 'conversation')}",
        ["predicted", "R^2", "95 %", "p", "training mean", "group mean", "held out"],
        [_fit(fit) for fit in found.fits],
    )


def _fit(fit: Fit) -> list[str]:
    held = f"{fit.num_groups} in {fit.num_folds} folds" if fit.num_groups else "-"
    return [
        f"{fit.name} (flatters)" if fit.flatters else fit.name,
        value(fit.r_squared, 3, signed=True),
        interval(fit.interval, 3, signed=True),
        probability(fit.p_value),
        value(fit.mean_only, 3, signed=True),
        value(fit.group_only, 3, signed=True),
        held,
    ]


def _cluster(cluster: Cluster, digits: int) -> list[str]:
    group, share = cluster.groups[0]
    return [
        cluster.effect,
        str(cluster.num_messages),
        str(cluster.num_conversations),
        value(cluster.change, digits, signed=True),
        interval(cluster.interval, digits, signed=True),
        probability(cluster.p_value),
        # A topic is a sentence or two.
        f"{textwrap.shorten(group, _GROUP, placeholder=' ...')} {share:.0%}",
    ]
