"""``persona-atlas plan``: what a spec would need and cost. Runs nothing and downloads no weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ....jobs.plan import Plan
from ....jobs.sizing.devices import DeviceTable, load_devices
from ....jobs.sizing.estimate import Estimate, estimate
from ....jobs.sizing.fit import fits, require_fit, smallest_tensor_parallel
from ....jobs.sizing.pricing import Price, price
from ....jobs.specs.spec import load_spec
from ....jobs.wording import count_of
from ....workers.models.model_sketch import FactsFrom
from ...run.prepare import sketch_plan
from .. import output
from ..options import device_options, json_option, set_option, spec_argument

_FACTS_FROM = {
    "files": "the model's files",
    "configuration": "the model's configuration and weight index; a run needs all files",
    "table": "the table of known models, not the model's files; a run needs the files",
}


@click.command()
@spec_argument
@set_option
@device_options
@click.option(
    "--gpus",
    type=click.IntRange(min=1, max=1_000_000),
    help="Number of devices, for the days; by default those of the spec's replicas.",
)
@json_option
def plan(
    spec_file: str,
    overrides: tuple[str, ...],
    devices_file: str | None,
    device: str | None,
    gpus: int | None,
    as_json: bool,
) -> None:
    """Estimate what SPEC needs and costs: rollouts, tokens, bytes, memory, GPU-hours, money, days. Nothing is run.

    A job that fits no device is refused, with the changes that would make it fit. Prices and speeds come from a small
    table, which --devices replaces.
    """
    spec = load_spec(spec_file, overrides)
    table = load_devices(devices_file).of_kind(spec.placement.device)
    table = table if device is None else table.only(device)
    sketch = sketch_plan(spec, output.progress())
    planned, facts_from = sketch.plan, sketch.facts_from
    figures = estimate(planned)
    require_fit(planned, figures, table)
    prices = price_all(planned, figures, table, gpus)
    if as_json:
        document = as_dict(planned, figures, facts_from) | {"rows_concerned": sketch.rows_concerned}
        output.document(document | _prices_as_dict(table, prices, figures))
        return
    output.table("Plan", ["", ""], [*lines(planned, figures), ["model's facts", f"from {_FACTS_FROM[facts_from]}"]])
    columns = ["device", "GB", "per replica", "tokens/s", "device\nhours", table.currency, "devices", "days"]
    output.table(
        f"Price, if every response has the full length (prices of {table.prices_as_of})",
        columns,
        [_price_line(name, table, figures, prices.get(name)) for name in table.devices],
    )


def price_all(planned: Plan, figures: Estimate, table: DeviceTable, gpus: int | None) -> dict[str, Price]:
    """Price a plan on every device of a table that its replicas fit.

    Args:
        planned: The plan.
        figures: Its estimate.
        table: The devices.
        gpus: Number of devices; None: those of the spec's replicas.

    Returns:
        The prices, by name of the device.

    Raises:
        InputError: There are fewer devices than one replica needs.
    """
    size = figures.tensor_parallel
    return {
        name: price(planned, figures, name, device, tensor_parallel=size, gpus=gpus)
        for name, device in table.devices.items()
        if fits(figures, device, size)
    }


def lines(planned: Plan, figures: Estimate) -> list[list[str]]:
    """Format the plan as lines of (label, figure) for people."""
    facts = planned.facts
    by_kind = ", ".join(f"{count:,} {kind}" for kind, count in planned.rollouts_by_kind().items())
    whole, parts = output.size(figures.replica_bytes), figures.tensor_parallel
    split = f" over {parts} devices, {output.size(figures.device_bytes)} each" if parts > 1 else ""
    return [
        [
            "model",
            f"{planned.spec.model.source} ({count_of(facts.n_layers, 'layer')} x {facts.d_model}, {facts.family})",
        ],
        *_server_lines(planned),
        ["units", f"{len(planned.units):,} of at most {count_of(planned.rows_per_block, 'rollout')} each"],
        ["rollouts", f"{planned.num_rollouts:,} ({by_kind})"],
        ["tokens in", f"about {figures.prompt_tokens:,}"],
        ["tokens out", f"at most {figures.response_tokens:,}"],
        ["layers", f"{len(planned.layers)} of {facts.n_layers}"],
        ["stored", f"about {output.size(figures.stored_bytes)} in {count_of(figures.objects, 'object')}"],
        *_token_lines(planned, figures),
        ["replica memory", f"about {whole}{split}"],
        [
            "  of that",
            f"weights {output.size(figures.weight_bytes)}, KV cache {output.size(figures.cache_bytes)} for "
            f"{count_of(figures.rows_per_batch, 'rollout')} at a time, captured {output.size(figures.capture_bytes)}",
        ],
    ]


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
        "token_layers": list(planned.token_layers),
        "tokens_per_block": planned.tokens_per_block,
        "n_layers": planned.facts.n_layers,
        "d_model": planned.facts.d_model,
        "num_parameters": planned.facts.num_parameters,
        "prompt_tokens": figures.prompt_tokens,
        "response_tokens_at_most": figures.response_tokens,
        "canary_tokens_at_most": figures.canary_tokens,
        "stored_bytes": figures.stored_bytes,
        "stored_token_bytes": figures.stored_token_bytes,
        "objects": figures.objects,
        "rows_per_batch": figures.rows_per_batch,
        "tensor_parallel": figures.tensor_parallel,
        "weight_bytes": figures.weight_bytes,
        "cache_bytes": figures.cache_bytes,
        "capture_bytes": figures.capture_bytes,
        "held_token_bytes": figures.held_token_bytes,
        "device_bytes": figures.device_bytes,
        "replica_bytes": figures.replica_bytes,
        # The digest covers the fingerprint of the model's files, which only the files themselves give.
        "plan_digest": planned.digest if planned.facts.fingerprint else None,
    }


def _prices_as_dict(table: DeviceTable, prices: dict[str, Price], figures: Estimate) -> dict[str, Any]:
    return {
        "prices_as_of": table.prices_as_of.isoformat(),
        "currency": table.currency,
        "devices": {name: device.model_dump() for name, device in table.devices.items()},
        "prices": [asdict(found) | {"replicas": found.replicas} for found in prices.values()],
        "does_not_fit": [
            {"device": name, "smallest_tensor_parallel": smallest_tensor_parallel(figures, device)}
            for name, device in table.devices.items()
            if name not in prices
        ],
    }


def _price_line(name: str, table: DeviceTable, figures: Estimate, found: Price | None) -> list[str]:
    device = table.devices[name]
    if found is None:
        smallest = smallest_tensor_parallel(figures, device)
        change = f"fits with tensor_parallel {smallest}" if smallest else "does not fit"
        return [name, f"{device.memory_gb:g}", change, "", "", "", "", ""]
    return [
        name,
        f"{device.memory_gb:g}",
        str(found.tensor_parallel),
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
