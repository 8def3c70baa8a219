"""``persona-atlas plan``: what a spec would need and cost. Runs nothing and downloads no weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ....jobs.engines import VLLM_READING_SLOTS, Engine, possible_engines
from ....jobs.model_facts import ModelFacts
from ....jobs.plan import Plan
from ....jobs.sizing.devices import DeviceTable, load_devices
from ....jobs.sizing.estimate import Estimate, runs_texts_alone
from ....jobs.sizing.fit import fits, require_fit, smallest_tensor_parallel
from ....jobs.sizing.pricing import Price, price
from ....jobs.sizing.reduction_time import reduction_time
from ....jobs.sizing.streaming import estimates_of
from ....jobs.specs.spec import load_spec
from ....jobs.wording import count_of
from ....workers.models.model_sketch import FactsFrom
from ...run.check_model import check_job, lines_of
from ...run.growth import Growth
from ...run.prepare import sketch_plan, sketch_user
from .. import output
from ..options import device_options, grow_option, json_option, set_option, spec_argument
from .streamed_lines import streamed_lines, streamed_walks

_FACTS_FROM = {
    "files": "the model's files",
    "configuration": "the model's configuration and weight index; a run needs all files",
    "table": "the table of known models, not the model's files; a run needs the files",
}


@click.command()
@spec_argument
@set_option
@grow_option
@device_options
@click.option(
    "--gpus",
    type=click.IntRange(min=1, max=1_000_000),
    help="Number of devices, for the days; by default those of the spec's replicas.",
)
@click.option(
    "--check-model",
    is_flag=True,
    help="Also build the model without weights, from its configuration: decoder layers, hook points, whether vLLM "
    "captures it and over how many GPUs, a rendered prompt, and the longest prompt against the context.",
)
@json_option
def plan(
    spec_file: str,
    overrides: tuple[str, ...],
    grow: bool,
    devices_file: str | None,
    device: str | None,
    gpus: int | None,
    check_model: bool,
    as_json: bool,
) -> None:
    """Estimate what SPEC needs and costs: rollouts, tokens, bytes, memory, GPU-hours, money, days. Nothing is run.

    With --grow, what SPEC adds to the run in its store. A job that fits no device is refused, with the changes that
    would make it fit. Prices and speeds come from a small table, which --devices replaces.
    """
    spec = load_spec(spec_file, overrides)
    table = load_devices(devices_file).of_kind(spec.placement.device)
    table = table if device is None else table.only(device)
    sketch = sketch_plan(spec, output.progress(), grow=grow)
    planned, facts_from = sketch.plan, sketch.facts_from
    checked = check_job(planned, output.progress()) if check_model else None
    estimates = estimates_of(planned, table)
    figures = main_figures(estimates, table)
    require_fit(planned, figures, table)
    prices = price_all(planned, estimates, table, gpus, sketch_user(planned.spec, output.progress()))
    if as_json:
        document = as_dict(planned, figures, facts_from) | {"rows_concerned": sketch.rows_concerned}
        if sketch.growth is not None:
            document |= {"plan_digest": sketch.growth.whole.digest, "grows": _growth_as_dict(sketch.growth)}
        document |= {} if checked is None else {"model_check": checked.as_dict()}
        output.document(document | _prices_as_dict(planned, table, prices, figures))
        return
    if sketch.growth is not None:
        output.text(str(sketch.growth))
    output.table(
        "Plan" if sketch.growth is None else "Added",
        ["", ""],
        [
            *lines(planned, figures),
            *streamed_lines(planned, figures, table),
            ["model's facts", f"from {_FACTS_FROM[facts_from]}"],
        ],
    )
    if checked is not None:
        output.table("Model, checked without weights", ["", ""], lines_of(checked))
    columns = ["device", "engine", "per\nreplica", "tokens/s", "device\nhours", table.currency, "devices", "days"]
    output.table(
        f"Price, if every response has the full length (prices of {table.prices_as_of}; estimated, not measured)",
        columns,
        [line for name in table.devices for line in _price_lines(planned, name, table, figures, prices)],
    )


def main_figures(estimates: dict[Engine, Estimate], table: DeviceTable) -> Estimate:
    """Return the estimate that is shown: of the first engine whose replicas fit a device, or of the first.

    Args:
        estimates: Estimate of each engine that a run may use.
        table: The devices.
    """
    fitting = (
        figures
        for figures in estimates.values()
        if any(fits(figures, device, figures.tensor_parallel) for device in table.devices.values())
    )
    return next(fitting, next(iter(estimates.values())))


def price_all(
    planned: Plan,
    estimates: dict[Engine, Estimate],
    table: DeviceTable,
    gpus: int | None,
    user: ModelFacts | None = None,
) -> dict[tuple[str, Engine], Price]:
    """Price a plan on every device of a table that its replicas fit, for each engine.

    Args:
        planned: The plan.
        estimates: Estimate of each engine that a run may use.
        table: The devices.
        gpus: Number of devices; None: those of the spec's replicas.
        user: The model that plays the user where the workers run one of its own; None for none.

    Returns:
        The prices, by name of the device and engine.

    Raises:
        InputError: There are fewer devices than one replica needs.
    """
    asked = planned.spec.placement.engine
    return {
        (name, engine): price(
            planned, figures, name, device, tensor_parallel=figures.tensor_parallel, gpus=gpus, user=user
        )
        for name, device in table.devices.items()
        for engine, figures in estimates.items()
        # ``auto`` takes vLLM on GPUs only.
        if fits(figures, device, figures.tensor_parallel)
        and (engine == "builtin" or asked == "vllm" or device.kind == "gpu")
    }


def lines(planned: Plan, figures: Estimate) -> list[list[str]]:
    """Format the plan as lines of (label, figure) for people."""
    facts = planned.facts
    by_kind = ", ".join(f"{count:,} {kind}" for kind, count in planned.rollouts_by_kind().items())
    whole, parts = output.size(figures.replica_bytes), figures.gpus_per_replica
    split = f" over {parts} devices, {output.size(figures.device_bytes)} each" if parts > 1 else ""
    return [
        [
            "model",
            f"{planned.spec.model.source} ({count_of(facts.n_layers, 'layer')} x {facts.d_model}, {facts.family})",
        ],
        *_server_lines(planned),
        ["units", f"{len(planned.units):,} of at most {count_of(planned.rows_per_block, 'rollout')} each"],
        ["rollouts", f"{planned.num_rollouts:,} ({by_kind})"],
        ["tokens in", f"about {figures.prompt_tokens:,}{_cached(figures.turns.tokens)}"],
        ["tokens out", f"at most {figures.response_tokens:,}"],
        *_user_lines(planned, figures),
        ["layers", f"{len(planned.layers)} of {facts.n_layers}"],
        *_intervention_lines(planned),
        ["stored", f"about {output.size(figures.stored_bytes)} in {count_of(figures.objects, 'object')}"],
        *_token_lines(planned, figures),
        ["replica memory", f"about {whole}{split} ({_ENGINE_NAMES[figures.engine]})"],
        ["  of that", _memory_line(planned, figures)],
        *_alone_lines(planned, figures),
        *_reduction_lines(planned),
    ]


_ENGINE_NAMES = {"builtin": "built-in engine", "vllm": "vLLM"}


def _memory_line(planned: Plan, figures: Estimate) -> str:
    weights, cache = output.size(figures.weight_bytes), output.size(figures.cache_bytes)
    captured = output.size(figures.capture_bytes)
    if figures.engine == "vllm":
        slots = count_of(figures.rows_per_batch + VLLM_READING_SLOTS, "slot")
        return (
            f"weights {weights}, KV cache {cache} or all that is left, sums of {slots} {captured}, states of a step "
            f"{output.size(figures.step_bytes)}"
        )
    rows = count_of(figures.rows_per_batch, "rollout")
    if figures.weights == "streamed":
        layers = f"two of {planned.facts.n_layers} layers"
        return f"{weights} for {layers}, what lies outside of them and {rows} at a time, captured {captured}"
    return f"weights {weights}, KV cache {cache} for {rows} at a time, captured {captured}"


def _intervention_lines(planned: Plan) -> list[list[str]]:
    """Tell which edits the rollouts are made under; no lines for a plan without any."""
    entries = [] if planned.edits is None else planned.edits.lines
    return [["intervention" if not number else "", line] for number, line in enumerate(entries)]


def _alone_lines(planned: Plan, figures: Estimate) -> list[list[str]]:
    """Tell that each text has a pass of its own; no lines for a model of which this is not known."""
    if not runs_texts_alone(planned, figures.engine):
        return []
    kinds = ", ".join(planned.facts.other_layers)
    because = f", because it has layers of type {kinds}" if kinds else ""
    return [["passes", f"texts of a {planned.facts.family} model do not share passes{because}: one rollout at a time"]]


def _reduction_lines(planned: Plan) -> list[list[str]]:
    """Format what the reduction takes after the last unit; no lines for a plan without one."""
    found = reduction_time(planned)
    if found is None:
        return []
    minutes = round(60 * found.core_hours)
    time = f"about {count_of(minutes, 'core-minute')}" if minutes else "less than a core-minute"
    if minutes >= 60:
        time = f"about {_figure(found.core_hours)} core-hours"
    read = output.size(found.read_bytes)
    return [["reduction", f"{time} without GPUs, and {read} read (estimated, not measured)"]]


def _token_lines(planned: Plan, figures: Estimate) -> list[list[str]]:
    """Format what keeping every token takes; no lines for a plan that does not."""
    if not planned.token_layers:
        return []
    return [
        [
            "  of that",
            f"at most {output.size(figures.stored_token_bytes)} for every token of layers "
            f"{', '.join(map(str, planned.token_layers))}",
        ],
        [
            "tokens in memory",
            f"about {output.size(figures.held_token_bytes)} per replica, in main memory and not the GPU's",
        ],
    ]


def _server_lines(planned: Plan) -> list[list[str]]:
    """Format the server that generates, and the key that it is sent; no lines for a plan without one."""
    generation = planned.spec.generation
    if generation is None:
        return []
    key = generation.api_key_env
    return [["generated by", f"{generation.host} ({generation.endpoint}{f', with the key in {key}' if key else ''})"]]


def _user_lines(planned: Plan, figures: Estimate) -> list[list[str]]:
    """Tell who plays the user, and what that takes; no lines for a plan without a simulated user."""
    if planned.spec.drift is None:
        return []
    user = planned.spec.drift.user
    server, key = user.server, user.api_key_env
    where = "the model itself" if user.is_same else f"{user.model}, built-in engine"
    if server is not None:
        where = f"{user.model} on {server.host} ({server.endpoint}{f', with the key in {key}' if key else ''})"
    read, written = figures.user_prompt_tokens, figures.user_response_tokens
    cached = _cached(figures.turns.user_tokens)
    return [["user", where], ["  its tokens", f"about {read:,} in{cached}, at most {written:,} out"]]


def _cached(tokens: int) -> str:
    return f" (up to {tokens:,} of them cached from earlier turns)" if tokens else ""


def _growth_as_dict(growth: Growth) -> dict[str, Any]:
    return {
        "store": growth.url,
        "addition": growth.number,
        "units_before": growth.units_before,
        "rollouts_before": growth.rollouts_before,
        "rollouts_since": growth.whole.num_rollouts,
    }


def _user_as_dict(planned: Plan, figures: Estimate) -> dict[str, Any]:
    """Describe who plays the user; nothing for a plan without a simulated user."""
    if planned.spec.drift is None:
        return {}
    user = planned.spec.drift.user
    return {
        "user": {
            "model": user.model,
            "endpoint": user.endpoint,
            "endpoint_key": user.api_key_env,
            "prompt_tokens": figures.user_prompt_tokens,
            "cached_tokens": figures.turns.user_tokens,
            "response_tokens_at_most": figures.user_response_tokens,
        }
    }


def as_dict(planned: Plan, figures: Estimate, facts_from: FactsFrom) -> dict[str, Any]:
    """Build the object that ``--json`` prints for a plan."""
    generation = planned.spec.generation
    return {
        "model": planned.spec.model.source,
        "endpoint": generation.endpoint if generation else None,
        "endpoint_host": generation.host if generation else None,
        "endpoint_key": generation.api_key_env if generation else None,
        "facts_from": facts_from,
        "units": len(planned.units),
        "rollouts": planned.num_rollouts,
        "rollouts_by_kind": planned.rollouts_by_kind(),
        "rows_per_block": planned.rows_per_block,
        "layers": list(planned.layers),
        "interventions": [] if planned.edits is None else planned.edits.lines,
        "token_layers": list(planned.token_layers),
        "tokens_per_block": planned.tokens_per_block,
        "n_layers": planned.facts.n_layers,
        "d_model": planned.facts.d_model,
        "num_parameters": planned.facts.num_parameters,
        "prompt_tokens": figures.prompt_tokens,
        "cached_tokens": figures.turns.tokens,
        "response_tokens_at_most": figures.response_tokens,
        "canary_tokens_at_most": figures.canary_tokens,
        **_user_as_dict(planned, figures),
        "stored_bytes": figures.stored_bytes,
        "stored_token_bytes": figures.stored_token_bytes,
        "objects": figures.objects,
        "rows_per_batch": figures.rows_per_batch,
        "engine": figures.engine,
        "engines": list(possible_engines(planned.spec, planned.facts)),
        "runs_texts_alone": runs_texts_alone(planned, figures.engine),
        "tensor_parallel": figures.tensor_parallel,
        "pipeline_parallel": figures.pipeline_parallel,
        "gpus_per_replica": figures.gpus_per_replica,
        "weights": figures.weights,
        "weight_bytes": figures.weight_bytes,
        "cache_bytes": figures.cache_bytes,
        "capture_bytes": figures.capture_bytes,
        "step_bytes": figures.step_bytes,
        "held_token_bytes": figures.held_token_bytes,
        "device_bytes": figures.device_bytes,
        "replica_bytes": figures.replica_bytes,
        "reduction_core_hours": None if (reduced := reduction_time(planned)) is None else reduced.core_hours,
        "reduction_read_bytes": None if reduced is None else reduced.read_bytes,
        # The digest covers the fingerprint of the model's files, which only the files themselves give.
        "plan_digest": planned.digest if planned.facts.fingerprint else None,
    }


def _prices_as_dict(
    planned: Plan, table: DeviceTable, prices: dict[tuple[str, Engine], Price], figures: Estimate
) -> dict[str, Any]:
    priced = {name for name, _ in prices}
    return {
        "prices_as_of": table.prices_as_of.isoformat(),
        "currency": table.currency,
        "devices": {name: device.model_dump() for name, device in table.devices.items()},
        "walks": streamed_walks(planned, figures, table),
        "prices": [asdict(found) | {"replicas": found.replicas} for found in prices.values()],
        "does_not_fit": [
            {"device": name, "smallest_tensor_parallel": smallest_tensor_parallel(planned, figures, device)}
            for name, device in table.devices.items()
            if name not in priced
        ],
    }


def _price_lines(
    planned: Plan, name: str, table: DeviceTable, figures: Estimate, prices: dict[tuple[str, Engine], Price]
) -> list[list[str]]:
    """Format the prices on a device, a line for each engine, or what would make a replica fit it."""
    found = [price for (device, _), price in prices.items() if device == name]
    if found:
        return [_price_line(price) for price in found]
    smallest = smallest_tensor_parallel(planned, figures, table.devices[name])
    change = ["fits with", str(smallest)] if smallest else ["does not fit", ""]
    return [[name, *change, "", "", "", "", ""]]


def _price_line(found: Price) -> list[str]:
    return [
        found.device,
        found.engine,
        str(found.tensor_parallel * found.pipeline_parallel),
        f"{found.tokens_per_s:,.0f}",
        _figure(found.gpu_hours),
        _figure(found.money),
        str(found.gpus),
        _figure(found.days),
    ]


def _figure(value: float) -> str:
    """Format a number for people: with two decimals if it is small, none if it is large."""
    if 0 < value < 0.01:
        return "< 0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
