"""``persona-atlas verify``: re-read a run and check everything in it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ....jobs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.locations.location import open_location
from ....storage.verification.verify import Verification, verify_run
from ....storage.verification.verify_unit import Problem
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument

_MAX_UNITS = 20


@click.command()
@store_argument
@click.option("--quick", is_flag=True, help="Check records and lengths only; read no activations or texts.")
@click.option("--complete", is_flag=True, help="Fail if a planned unit is missing, too.")
@endpoint_option
@reading_access_options
@json_option
def verify(
    store_url: str, quick: bool, complete: bool, endpoint_url: str | None, access: S3Access, as_json: bool
) -> int:
    """Re-read the run at STORE and check it: checksums, rows against texts and spans, finite values, canaries.

    Exit status 1 if anything committed is damaged. Units that are not committed yet are listed but are not damage.
    """
    progress = output.progress()
    with progress.checking("Checking") as show:
        found = verify_run(open_location(store_url, endpoint_url, access), quick=quick, on_progress=show)
    is_good = found.is_sound and (found.is_complete or not complete)
    if as_json:
        output.document(_as_dict(found))
    else:
        _print(found, quick=quick)
    return 0 if is_good else 1


def _print(found: Verification, *, quick: bool) -> None:
    read = "lengths only" if quick else f"{output.size(found.bytes_read)} read"
    output.text(f"{found.units_done} of {found.units_planned} units, {count_of(found.rollouts, 'rollout')}, {read}")
    if found.worst_relative_error is not None:
        output.text(
            f"{count_of(found.canaries, 'unit')} compared with a plain forward pass: relative error at most "
            f"{found.worst_relative_error:.1e}"
        )
    if found.missing:
        named = ", ".join(found.missing[:_MAX_UNITS])
        output.text(f"Missing: {named}{' ...' if len(found.missing) > _MAX_UNITS else ''}")
    if found.garbage_objects:
        size = output.size(found.garbage_bytes)
        output.text(
            f"{count_of(found.garbage_objects, 'object')} of attempts that do not count ({size}); see persona-atlas gc"
        )
    if found.problems:
        lines = [[problem.kind, problem.path, problem.message] for problem in found.problems]
        output.table("Problems", ["kind", "object", "what"], lines)
    state = "Sound" if found.is_sound else "DAMAGED"
    output.text(f"{state} and {'complete' if found.is_complete else 'incomplete'}.")


def _as_dict(found: Verification) -> dict[str, Any]:
    return {
        "sound": found.is_sound,
        "complete": found.is_complete,
        "units_done": found.units_done,
        "units_planned": found.units_planned,
        "missing": list(found.missing),
        "problems": [_problem_as_dict(problem) for problem in found.problems],
        "rollouts": found.rollouts,
        "bytes_read": found.bytes_read,
        "canaries": found.canaries,
        "worst_relative_error": found.worst_relative_error,
        "dead_objects": found.garbage_objects,
        "dead_bytes": found.garbage_bytes,
    }


def _problem_as_dict(problem: Problem) -> dict[str, Any]:
    # The name that ``--json`` has always had for it.
    return {"what" if key == "message" else key: value for key, value in asdict(problem).items()}
