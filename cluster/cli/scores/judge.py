"""``persona-atlas judge``: let a model score how far the responses of a run play their role or show their trait."""

from __future__ import annotations

from dataclasses import asdict

import click

from ....jobs.judging.costs import ASSUMED_REQUEST_S, CostEstimate
from ....jobs.judging.outcomes import JUDGED_KINDS
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.query.run import open_run
from ...judging.judge_run import JudgeSettings, judge_run, record_to_write
from ...judging.to_judge import find_what_to_judge
from ...run.progress import span
from .. import output
from ..options import access_options, endpoint_option, json_option, store_argument
from .judge_options import JudgeOptions, judge_options, print_judging


@click.command()
@store_argument
@judge_options(model_required=True)
@click.option("--kind", multiple=True, type=click.Choice(JUDGED_KINDS), help="Only this kind; repeatable.")
@click.option("--persona", multiple=True, help="Only personas of this name or glob; repeatable.")
@click.option("--dry-run", is_flag=True, help="Only estimate tokens, money and time; nothing is sent or written.")
@click.option("--catalog", default=None, metavar="DIR", help="The catalog, if it is not where the run's spec says.")
@endpoint_option
@access_options
@json_option
def judge(
    store_url: str,
    judged_by: JudgeOptions,
    kind: tuple[str, ...],
    persona: tuple[str, ...],
    dry_run: bool,
    catalog: str | None,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> int:
    """Let a model score the responses of the run at STORE: roles from 0 to 3, traits from 0 to 100.

    Rollouts of the default and empty responses are not judged. A call that was stopped goes on with the same command:
    only what has no outcome is judged.
    """
    settings = judged_by.settings()
    run = open_run(store_url, endpoint_url, access)
    to_judge = find_what_to_judge(run, settings.name, kind, persona, catalog)
    record_to_write(run.location, settings.record(to_judge.rubrics))
    estimated = settings.estimate(to_judge.prompt_tokens, to_judge.num_left)
    document = {"judge": settings.name, "store": run.url, "model": settings.model, "estimate": asdict(estimated)}
    if dry_run and as_json:
        output.document(document | {"dry_run": True})
        return 0
    (output.text if dry_run else output.progress().say)(
        _estimate_text(settings, estimated, suggests_trial=dry_run and not persona)
    )
    if dry_run:
        return 0
    done = judge_run(to_judge, settings, output.progress())
    if as_json:
        output.document(document | done.as_dict())
    else:
        print_judging(settings.name, done)
    return 1 if done.left else 0


def _estimate_text(settings: JudgeSettings, estimated: CostEstimate, *, suggests_trial: bool) -> str:
    if not estimated.rollouts:
        return f"The judge {settings.name!r} has nothing left to score."
    money = f"; {estimated.usd:.2f} USD" if estimated.usd is not None else ""
    time = _time_text(settings, estimated, suggests_trial=suggests_trial)
    return (
        f"The judge {settings.name!r} has {count_of(estimated.rollouts, 'rollout')} to score: about "
        f"{estimated.prompt_tokens:,} tokens in and {estimated.reply_tokens:,} out{money}; {time}."
    )


def _time_text(settings: JudgeSettings, estimated: CostEstimate, *, suggests_trial: bool) -> str:
    if estimated.seconds is None or settings.server is None:
        # Advice for one who is still choosing what to judge; it has been followed, or it is too late, otherwise.
        advice = ": try --persona with one name first" if suggests_trial else ""
        return f"the time on this machine is not estimated{advice}"
    limit = "" if settings.requests_per_s is None else f", {settings.requests_per_s:g} a second at most"
    at_a_time = f"{settings.server.concurrency} under way at a time{limit}"
    return f"about {span(estimated.seconds)}, if a request takes {span(ASSUMED_REQUEST_S)}, with {at_a_time}"
