"""The command ``persona-atlas``: collects the commands of this folder's modules, and maps errors to exit statuses.

0: done. 1: the work failed. 2: the input was wrong. 130: stopped by Ctrl-C, SIGTERM or SIGHUP, resumable.
Results go to stdout, everything else to stderr; with ``--json`` stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from ...jobs.errors import AtlasError
from ...jobs.machine_faults import machine_fault
from ...jobs.redaction import without_secrets
from ...jobs.version import __version__
from . import catalog, output
from .jobs import cancel, cluster, drive, extract, list_jobs, logs, plan, resume, run, status, submit, sweep
from .live import chat, serve
from .options import refuse_blank_values
from .scores import judge, judges, scores
from .stop_signals import EXIT_INTERRUPTED, stop_on_signals
from .stores import (
    compare,
    export,
    gc,
    import_vectors,
    probe_store,
    project,
    pull,
    push,
    query,
    reduce,
    report,
    show,
    verify,
)
from .studies import drift, harm, lm_eval, pareto, predict, trajectories
from .typed_names import name_what_was_typed


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="persona-atlas")
def cli() -> None:
    """Extract, keep and query the activations behind a language model's personas."""


for _command in (
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
    sweep.sweep,
    pareto.pareto,
    lm_eval.lm_eval,
    show.show,
    query.query,
    verify.verify,
    gc.gc,
    probe_store.probe_store,
    judge.judge,
    judges.judges,
    scores.scores,
    reduce.reduce,
    compare.compare,
    report.report,
    export.export,
    import_vectors.import_vectors,
    project.project,
    drift.drift,
    trajectories.trajectories,
    predict.predict,
    harm.harm,
    push.push,
    pull.pull,
    serve.serve,
    chat.chat,
    catalog.catalog,
    cluster.cluster,
):
    cli.add_command(_command)
refuse_blank_values(cli)
name_what_was_typed(cli)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        arguments: Command and options; None: those of this process.
    """
    argv: Sequence[str] = sys.argv[1:] if arguments is None else arguments
    stop_on_signals()
    as_json = "--json" in argv
    try:
        result: Any = cli.main(args=list(argv), prog_name="persona-atlas", standalone_mode=False)
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
    except Exception as error:  # noqa: BLE001 - nothing above could print it as JSON
        if (fault := machine_fault(error)) is not None:
            output.error(fault.as_dict(), as_json=as_json)
            sys.exit(fault.exit_status)
        # A bug: print the traceback for its report, and still give a program that reads JSON its object.
        sys.stderr.write(without_secrets(traceback.format_exc()))
        output.error({"error": f"unexpected: {error!r}", "code": "internal"}, as_json=as_json)
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
