"""``persona-atlas verify``: re-read a run and check everything in it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.format.layout import WITHDRAWN
from ....storage.format.records import BUILTIN_ENGINE
from ....storage.locations.location import Location, open_location
from ....storage.run.lease import refuse_if_driven
from ....storage.run.run_store import read_run_record
from ....storage.verification.recomputation import Recomputation
from ....storage.verification.repair import Repair, cannot_repair, repair_run
from ....storage.verification.verify import Verification
from ....storage.verification.verify_unit import Problem
from ...run.recompute import verify_and_recompute
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument

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
@click.option(
    "--repair",
    is_flag=True,
    help="Withdraw the commit records of damaged units, so that the next run makes them again.",
)
@click.option("--yes", is_flag=True, help="Repair without asking.")
@endpoint_option
@reading_access_options
@json_option
def verify(
    store_url: str,
    quick: bool,
    complete: bool,
    count: int | None,
    seed: int,
    model: str | None,
    repair: bool,
    yes: bool,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> int:
    """Re-read the run at STORE and check it: checksums, rows against texts and spans, finite values, canaries.

    Exit status 1 if anything committed is damaged, or a recomputed rollout differs. Units that are not committed yet
    are listed but are not damage.

    --repair shows the damage and asks. Without a terminal, or with --json, it changes nothing unless --yes is given.
    Withdrawn records are kept in withdrawn/; the index is rebuilt. It is refused while a driver works on the run. Exit
    status 1 if damage is left.
    """
    location = open_location(store_url, endpoint_url, access)
    if repair:
        if count is not None:
            raise click.UsageError("--repair looks for damaged objects; give --recompute in a command of its own.")
        refuse_if_driven(location)
    elif yes:
        raise click.UsageError("--yes is for --repair.")
    found = verify_and_recompute(location, output.progress(), quick=quick, count=count or 0, seed=seed, model=model)
    is_good = found.is_sound and (found.is_complete or not complete)
    if not as_json:
        _print(found, quick=quick)
    done = _repair(location, found, is_confirmed=yes, may_ask=not as_json) if repair else None
    if as_json:
        output.document(_as_dict(found) | ({"repair": asdict(done) if done else None} if repair else {}))
    if done is not None:
        return 1 if done.left or (complete and (done.units or not found.is_complete)) else 0
    return 0 if is_good else 1


def _repair(location: Location, found: Verification, *, is_confirmed: bool, may_ask: bool) -> Repair | None:
    """Repair a run if that was confirmed; None where nothing was changed."""
    units, left = found.damaged_units, cannot_repair(found.problems)
    if may_ask:
        _print_prospect(units, left, is_needed=bool(found.problems))
    if not found.problems:
        return None
    if not is_confirmed and not (may_ask and sys.stdin.isatty() and click.confirm("Repair?", err=True)):
        if may_ask:
            output.text("Nothing was changed; --yes repairs.")
        return None
    record = read_run_record(location)
    assert record is not None
    done = repair_run(location, record, found.problems)
    if may_ask:
        output.text(f"Withdrew {count_of(len(done.objects), 'record')} to {WITHDRAWN}/ and rebuilt the index.")
        if done.units:
            output.text(f"Run the job again: it makes {count_of(len(done.units), 'unit')} anew.")
    return done


def _print_prospect(units: Sequence[str], left: Sequence[Problem], *, is_needed: bool) -> None:
    if not is_needed:
        output.text("There is nothing to repair.")
        return
    output.text("A repair rebuilds the index from the commit records.")
    if units:
        named = ", ".join(units[:_MAX_UNITS])
        output.text(f"It withdraws {count_of(len(units), 'unit')}: {named}{' ...' if len(units) > _MAX_UNITS else ''}")
    for problem in left:
        output.text(f"It cannot repair {problem.path}: {problem.message}")


def _print(found: Verification, *, quick: bool) -> None:
    read = "lengths only" if quick else f"{output.size(found.bytes_read)} read"
    output.text(f"{found.units_done} of {found.units_planned} units, {count_of(found.rollouts, 'rollout')}, {read}")
    if found.worst_relative_error is not None:
        output.text(
            f"{count_of(found.canary_rollouts, 'rollout')} of {count_of(found.canaries, 'unit')} compared with a plain "
            f"forward pass: relative error at most {found.worst_relative_error:.1e}"
        )
    if found.canaries_above:
        output.text(
            f"{count_of(found.canaries_above, 'rollout')} of these above the limit and kept with a warning "
            "(capture.canary.action: warn)"
        )
    if set(found.engines) - {BUILTIN_ENGINE}:
        by_engine = [f"{name} ({count_of(units, 'unit')})" for name, units in sorted(found.engines.items())]
        output.text(f"captured by {', '.join(by_engine)}")
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
    if found.above:
        output.text(f"{count_of(found.above, 'rollout')} of these above it, which rounding may explain in 16 bits.")
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
        "engines": found.engines,
        "bytes_read": found.bytes_read,
        "canaries": found.canaries,
        "canary_rollouts": found.canary_rollouts,
        "canaries_above": found.canaries_above,
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
