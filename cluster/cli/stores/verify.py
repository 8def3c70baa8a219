"""``persona-atlas verify``: re-read a run and check everything in it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import click

from ....jobs.wording import count_of
from ....storage.locations.location import open_location
from ....storage.verification.recomputation import Recomputation
from ....storage.verification.verify import Verification
from ....storage.verification.verify_unit import Problem
from ...run.recompute import verify_and_recompute
from .. import output
from ..options import endpoint_option, json_option, store_argument

_MAX_UNITS = 20


@click.command()
@store_argument
@click.option("--quick", is_flag=True, help="Check records and lengths only; read no activations or texts.")
@click.option("--complete", is_flag=True, help="Fail if a planned unit is missing, too.")
@click.option(
    "--recompute",
    "count",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Also compare N rollouts, chosen at random, with plain forward passes of the run's model.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the rollouts of --recompute.")
@click.option(
    "--model", default=None, metavar="SOURCE", help="Where the model is now, for --recompute; else as in the run."
)
@endpoint_option
@json_option
def verify(
    store_url: str,
    quick: bool,
    complete: bool,
    count: int | None,
    seed: int,
    model: str | None,
    endpoint_url: str | None,
    as_json: bool,
) -> int:
    """Re-read the run at STORE and check it: checksums, rows against texts and spans, finite values, canaries.

    Exit status 1 if anything committed is damaged, or a recomputed rollout differs. Units that are not committed yet
    are listed but are not damage.
    """
    location = open_location(store_url, endpoint_url)
    found = verify_and_recompute(location, output.progress(), quick=quick, count=count or 0, seed=seed, model=model)
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
            f"{count_of(found.canary_rollouts, 'rollout')} of {count_of(found.canaries, 'unit')} compared with a plain "
            f"forward pass: relative error at most {found.worst_relative_error:.1e}"
        )
    if found.unchecked_units:
        output.text(f"{count_of(found.unchecked_units, 'unit')} made without such a check (capture.canary.check: none)")
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
    if found.recomputation is not None:
        _print_recomputation(found.recomputation)
    state = "Sound" if found.is_sound else "DAMAGED"
    output.text(f"{state} and {'complete' if found.is_complete else 'incomplete'}.")


def _print_recomputation(found: Recomputation) -> None:
    error = found.worst_relative_error
    output.text(
        f"{count_of(found.rollouts, 'rollout')} recomputed: relative error at most "
        f"{0.0 if error is None else error:.1e}, {found.tolerance:.1e} is allowed"
    )
    for pooling, rollouts in found.left_out.items():
        output.text(f"{pooling} of {count_of(rollouts, 'rollout')} was left out: the message's tokens are not stored.")
    if found.deviations:
        lines = [[one.rollout, str(one.layer), f"{one.relative_error:.1e}"] for one in found.deviations]
        output.table("Rollouts that differ from a plain forward pass", ["rollout", "worst layer", "error"], lines)


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
        "canary_rollouts": found.canary_rollouts,
        "unchecked_units": found.unchecked_units,
        "worst_relative_error": found.worst_relative_error,
        "dead_objects": found.garbage_objects,
        "dead_bytes": found.garbage_bytes,
        "recomputed": _recomputation_as_dict(found.recomputation) if found.recomputation is not None else None,
    }


def _recomputation_as_dict(found: Recomputation) -> dict[str, Any]:
    # An infinite error (a value that is not finite) has no JSON number.
    figures = asdict(found)
    for one in (figures, *figures["deviations"]):
        for name in ("relative_error", "worst_relative_error"):
            if one.get(name) is not None and not math.isfinite(one[name]):
                one[name] = None
    return figures | {"close": found.is_close, "deviations": list(figures["deviations"])}


def _problem_as_dict(problem: Problem) -> dict[str, Any]:
    # The name that ``--json`` has always had for it.
    return {"what" if key == "message" else key: value for key, value in asdict(problem).items()}
