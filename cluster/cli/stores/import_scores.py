"""``persona-atlas import-scores``: keep the scores of the released pipeline with a run, for queries."""

from __future__ import annotations

from dataclasses import asdict

import click

from ....jobs.errors import InputError
from ....jobs.files.user_paths import is_directory, local_path
from ....jobs.specs.store_spec import S3Access
from ....storage.derived.released_scores import RELEASED_JUDGE, import_released_scores
from ....storage.query.run import open_run
from .. import output
from ..options import access_options, endpoint_option, json_option, store_argument


@click.command("import-scores")
@store_argument
@click.argument("directory", metavar="SCORES", type=click.Path())
@click.option("--judge", default=RELEASED_JUDGE, show_default=True, help="Name to keep the scores under.")
@endpoint_option
@access_options
@json_option
def import_scores(
    store_url: str, directory: str, judge: str, endpoint_url: str | None, access: S3Access, as_json: bool
) -> None:
    """Give the rollouts of the run at STORE the scores in the directory SCORES, as the released pipeline writes them.

    A file is a persona, as pirate.json: {"pos_p0_q0": 3, "pos_p0_q1": 1}. Queries select by them: --min-score 3.
    """
    source = local_path(directory, "SCORES")
    if not is_directory(source, "SCORES"):
        raise InputError(
            "there is no such directory.", code="no_scores", file=directory, hint="Name the folder of scores."
        )
    run = open_run(store_url, endpoint_url, access)
    found = import_released_scores(run.location, run.index, source, judge)
    if as_json:
        output.document({"judge": judge} | asdict(found))
    else:
        output.text(
            f"{found.scored:,} rollouts have a score of the judge {judge!r}, {found.unscored:,} have none; "
            f"{found.unused:,} scores belong to no rollout of the run."
        )
        if found.ambiguous:
            output.text(
                f"{found.ambiguous:,} scores were given to none, as the run has several rollouts of their question."
            )
