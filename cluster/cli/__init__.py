"""The command ``persona-atlas``: adds one verb from each file of this folder, and turns errors into exit statuses.

0: done. 1: the work failed. 2: the input was wrong. 130: stopped by Ctrl-C or SIGTERM, resumable.
Results go to stdout, everything else to stderr; with ``--json`` stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from ... import __version__
from ...jobs.errors import AtlasError
from . import catalog, output
from .jobs import cancel, cluster, drive, extract, list_jobs, logs, plan, resume, run, status, submit
from .stores import gc, probe_store, query, reduce, report, show, verify

EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="persona-atlas")
def cli() -> None:
    """Extract, keep and query the activations behind a language model's personas."""


for _verb in (
    run.run,
    extract.extract,
    submit.submit,
    list_jobs.list_jobs,
    status.status,
    logs.logs,
    cancel.cancel,
    resume.resume,
    drive.drive,
    plan.plan,
    show.show,
    query.query,
    verify.verify,
    gc.gc,
    probe_store.probe_store,
    reduce.reduce,
    report.report,
    catalog.catalog,
    cluster.cluster,
):
    cli.add_command(_verb)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # Cleaning up is not cut short by one more Ctrl-C; whoever insists gets out all the same.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _force_stop)
    raise KeyboardInterrupt


def _force_stop(_signal: int, _frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: os._exit(EXIT_INTERRUPTED))
    output.progress().say("Still cleaning up: once more ends it at once. What is committed stays either way.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    argv: Sequence[str] = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in argv
    try:
        ended: Any = cli.main(args=list(argv), prog_name="persona-atlas", standalone_mode=False)
    except click.ClickException as error:
        output.error({"error": error.format_message(), "code": "usage"}, as_json=as_json)
        sys.exit(2)
    except AtlasError as error:
        output.error(error.as_dict(), as_json=as_json)
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, click.Abort):
        output.error(
            {"error": "stopped.", "code": "interrupted"},
            as_json=as_json,
        )
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last place that can answer a program in its own terms
        # A fault of ours: the whole of it for whoever mends it, and still one object for a program.
        traceback.print_exc()
        output.error({"error": f"unexpected: {error!r}", "code": "internal"}, as_json=as_json)
        sys.exit(1)
    sys.exit(ended if isinstance(ended, int) else 0)
