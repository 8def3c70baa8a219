"""``persona-atlas report``: write the plots and tables of a run as one HTML file."""

from __future__ import annotations

import click

from ....analysis.reduce import reduce_run
from ....analysis.report import render_report, write_report
from ....jobs.errors import InputError
from ....jobs.files.user_paths import local_path
from ....jobs.machine_faults import refuse_machine_fault
from ....jobs.specs.store_spec import S3Access
from ....storage.query.run import open_run
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument


@click.command()
@store_argument
@click.option(
    "--out", type=click.Path(dir_okay=False), default=None, help="File to write; by default report.html in the store."
)
@endpoint_option
@reading_access_options
@json_option
def report(store_url: str, out: str | None, endpoint_url: str | None, access: S3Access, as_json: bool) -> None:
    """Write the report of the run at STORE: one self-contained HTML file."""
    if access.anonymous and out is None:
        raise InputError(
            "is needed: a store that is read without credentials cannot be written to.",
            code="read_only",
            field="--out",
            hint="Name a file of this machine, such as --out report.html.",
        )
    run = open_run(store_url, endpoint_url, access)
    reduction = reduce_run(run, say=output.progress().say)
    if out is None:
        place = write_report(run, reduction)
    else:
        target = local_path(out, "--out")
        try:
            target.write_text(render_report(run, reduction), encoding="utf-8")
        except OSError as error:
            refuse_machine_fault(error)
            raise InputError(
                f"{target} cannot be written: {error.strerror or error}.",
                code="not_writable",
                field="--out",
                hint="Choose a file in an existing, writable folder.",
            ) from error
        place = str(target)
    if as_json:
        output.document({"report": place, "reduction": reduction.reduction_id})
    else:
        output.text(f"Report:  {place}")
