"""``persona-atlas scores import``: keep scores that exist already with a run."""

from __future__ import annotations

from dataclasses import asdict

import click

from ....jobs.files.user_paths import local_path
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.derived.score_imports import IMPORTED_JUDGE, import_scores
from ....storage.query.run import open_run
from ....storage.run.commits import now_iso
from .. import output
from ..options import access_options, endpoint_option, json_option, store_argument


@click.group()
def scores() -> None:
    """Work with the scores of a run."""


@scores.command("import")
@store_argument
@click.argument("source", metavar="SOURCE", type=click.Path())
@click.option("--judge", default=IMPORTED_JUDGE, show_default=True, help="Name to keep the scores under.")
@endpoint_option
@access_options
@json_option
def import_command(
    store_url: str, source: str, judge: str, endpoint_url: str | None, access: S3Access, as_json: bool
) -> None:
    """Give the rollouts of the run at STORE the scores in SOURCE.

    SOURCE is a directory of the released pipeline, with a file per persona, as pirate.json: {"pos_p0_q0": 3}; or a
    table (.parquet, .csv, .jsonl) with the columns kind, persona, polarity, prompt_index, question_index, score and,
    where there are several, sample_index. If a score belongs to no rollout of the run, nothing is imported.
    """
    path = local_path(source, "SOURCE")
    run = open_run(store_url, endpoint_url, access)
    found = import_scores(run.location, run.index, path, judge, now_iso())
    if as_json:
        output.document({"judge": judge} | asdict(found))
        return
    output.text(
        f"Scores of the judge {judge!r} from these files: {count_of(found.scored, 'rollout')}; listed without one: "
        f"{found.unscored:,}; not listed: {found.not_listed:,} of the run's."
    )
    if found.replaced:
        output.text(f"{found.replaced:,} of them had been scored under that name before.")
