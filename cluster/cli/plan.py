"""``persona-atlas plan``: what a spec would take; nothing is run."""

from __future__ import annotations

from typing import Any

import click

from ...jobs.estimate import Estimate, estimate
from ...jobs.plan import Plan
from ...jobs.spec import load_spec
from ..job import plan_job, require_readable
from . import output
from .options import json_option, set_option, spec_argument


@click.command()
@spec_argument
@set_option
@json_option
def plan(spec_file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what SPEC would take: units, rollouts, tokens, bytes, memory. Nothing is run."""
    progress = output.progress()
    planned, directory = plan_job(load_spec(spec_file, overrides), progress)
    require_readable(planned, directory, progress)
    figures = estimate(planned)
    if as_json:
        output.document(as_dict(planned, figures))
        return
    output.table("Plan", ["", ""], lines(planned, figures))


def lines(planned: Plan, figures: Estimate) -> list[list[str]]:
    """Give the plan as (what, figure) lines for people."""
    facts = planned.facts
    by_kind = ", ".join(f"{count:,} {kind}" for kind, count in planned.rollouts_by_kind().items())
    return [
        ["model", f"{planned.spec.model.source} ({facts.n_layers} layers x {facts.d_model}, {facts.family})"],
        ["units", f"{len(planned.units):,} of at most {planned.rows_per_block} rollouts"],
        ["rollouts", f"{planned.num_rollouts:,} ({by_kind})"],
        ["tokens in", f"about {figures.prompt_tokens:,}"],
        ["tokens out", f"at most {figures.response_tokens:,}"],
        ["layers", f"{len(planned.layers)} of {facts.n_layers}"],
        ["stored", f"about {output.size(figures.stored_bytes)} in {figures.objects:,} objects"],
        ["memory a replica", f"about {output.size(figures.replica_bytes)}"],
    ]


def as_dict(planned: Plan, figures: Estimate) -> dict[str, Any]:
    """Give the plan as plain data, for ``--json``."""
    return {
        "units": len(planned.units),
        "rollouts": planned.num_rollouts,
        "rollouts_by_kind": planned.rollouts_by_kind(),
        "rows_per_block": planned.rows_per_block,
        "layers": list(planned.layers),
        "n_layers": planned.facts.n_layers,
        "d_model": planned.facts.d_model,
        "prompt_tokens": figures.prompt_tokens,
        "response_tokens_at_most": figures.response_tokens,
        "stored_bytes": figures.stored_bytes,
        "objects": figures.objects,
        "replica_bytes": figures.replica_bytes,
        "plan_digest": planned.digest,
    }
