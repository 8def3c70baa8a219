"""``persona-atlas run``: run a job from this machine, reduce it, and print a summary."""

from __future__ import annotations

import click

from ....jobs.specs.spec import load_spec
from ..options import grow_option, join_option, json_option, set_option, spec_argument
from ..work import work


@click.command()
@spec_argument
@set_option
@grow_option
@join_option
@json_option
def run(spec_file: str, overrides: tuple[str, ...], grow: bool, address: str | None, as_json: bool) -> int:
    """Run the job in SPEC, or the missing units of it, then reduce it and write its report.

    A run that was stopped or killed continues with the same command; committed units are not done again. A spec that
    asks for more than the run in its store has is refused, unless --grow adds that to the run.
    """
    return work(load_spec(spec_file, overrides), address, grow=grow, as_json=as_json)
