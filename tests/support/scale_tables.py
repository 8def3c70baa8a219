"""Make the tables of docs/scale.md from plans of the three examples; run as a program, it prints them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from persona_atlas.jobs.engines import Engine
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.sizing.devices import Device, load_devices
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sizing.fit import fits, largest_batch
from persona_atlas.jobs.sizing.known_models import known_models
from persona_atlas.jobs.sizing.pricing import Price, price
from persona_atlas.jobs.sources.load import load_source
from persona_atlas.jobs.specs.spec import load_spec
from persona_atlas.jobs.vllm.parallelism import tensor_parallel_sizes

EXAMPLES = {"Gemma 2 27B": "gemma-2-27b.yaml", "Qwen 3 32B": "qwen-3-32b.yaml", "Llama 3.3 70B": "llama-3.3-70b.yaml"}
HARDWARE = [
    ("L4", 1),
    ("L40S", 1),
    ("L40S", 8),
    ("H100", 1),
    ("H100", 2),
    ("H100", 4),
    ("H100", 8),
    ("H200", 1),
    ("H200", 8),
]
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Way:
    """A way to do an example on some devices: GPUs of a replica, and GPU-hours of the whole set."""

    gpus: int
    gpu_hours: float


class _CountedOnce:
    """The source of a plan, whose tokens are counted once: to count those of a catalog takes as long as to plan it."""

    def __init__(self, plan: Plan) -> None:
        self._source: Any = plan.source
        self._counts = plan.source.token_counts(plan.units)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def token_counts(self, units: Any) -> Any:
        return self._counts


@cache
def _planned(model: str, *changes: str) -> Plan:
    spec = load_spec(_ROOT / "examples" / EXAMPLES[model], list(changes))
    plan = make_plan(spec, load_source(spec), known_models()[spec.model.source])
    source: Any = _CountedOnce(plan)
    return replace(plan, source=source)


def plan_of(model: str, *changes: str, **placement: Any) -> Plan:
    """The plan of an example under some changes. Where its replicas run changes neither its units nor their tokens."""
    plan = _planned(model, *changes)
    return replace(plan, spec=plan.spec.replaced(placement={"tensor_parallel": 1, "replicas": None, **placement}))


def priced(plan: Plan, engine: Engine, device: Device, name: str, size: int) -> Price | None:
    figures = estimate(plan, engine)
    return price(plan, figures, name, device, tensor_parallel=size, gpus=size) if fits(figures, device, size) else None


@cache
def builtin(model: str, name: str) -> Way | None:
    """The built-in engine on one device, with the largest batch that fits it."""
    device = load_devices().devices[name]
    plan = plan_of(model, engine="builtin")
    batch = largest_batch(plan, estimate(plan), device, 1)
    if batch is None or batch < 64:
        return None
    found = priced(plan_of(model, engine="builtin", batch_tokens=batch), "builtin", device, name, 1)
    return Way(1, found.gpu_hours) if found else None


@cache
def vllm(model: str, name: str, most: int = 8) -> Way | None:
    """vLLM with capture, over as many devices a replica as take the fewest GPU-hours."""
    device = load_devices().devices[name]
    sizes = tensor_parallel_sizes(plan_of(model).facts, most)
    found = [priced(plan_of(model, tensor_parallel=size), "vllm", device, name, size) for size in sizes]
    return min(
        (Way(each.tensor_parallel, each.gpu_hours) for each in found if each is not None),
        key=lambda way: way.gpu_hours,
        default=None,
    )


@cache
def endpoint(model: str, name: str, most: int = 8) -> Way | None:
    """A server of vLLM without capture, and then vLLM's prefill of each finished text."""
    captured = vllm(model, name, most)
    if captured is None:
        return None
    device, size = load_devices().devices[name], captured.gpus
    one = plan_of(model, "capture.layers=[0]", tensor_parallel=size)
    served = priced(one, "vllm", device, name, size)
    texts = plan_of(model, "generation.endpoint=http://host/v1", tensor_parallel=size)
    read = priced(texts, "vllm", device, name, size)
    assert served is not None
    assert read is not None
    return Way(size, served.gpu_hours + read.gpu_hours)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def models_table() -> str:
    """What the full set of each model is, and its GPU-hours in three ways, on H100 and H200."""
    head = ["model", "rollouts", "stored", "weights", "KV cache of a token", "device", "built-in engine"]
    head += ["vLLM with capture", "endpoint, then prefill"]
    rows = [_row(head), _row(["---"] * len(head))]
    for model in EXAMPLES:
        plan = plan_of(model)
        figures = estimate(plan, "vllm")
        per_token = plan.facts.kv_values_per_token * 2
        for name in ("H100", "H200"):
            ways = [builtin(model, name), vllm(model, name), endpoint(model, name)]
            rows.append(
                _row(
                    [
                        model,
                        f"{plan.num_rollouts:,}",
                        f"{figures.stored_bytes / 1e12:.2f} TB",
                        f"{figures.weight_bytes / 1e9:.1f} GB",
                        f"{per_token / 1024:.0f} KiB",
                        name,
                        *[
                            f"{way.gpu_hours:.0f}{f' (TP {way.gpus})' if way.gpus > 1 else ''}"
                            if way
                            else "does not fit"
                            for way in ways
                        ],
                    ]
                )
            )
    return "\n".join(rows)


def choices_table() -> str:
    """How long the full set takes on given hardware in each way, the least hours in bold."""
    rows = [_row(["hardware", *EXAMPLES]), _row(["---"] * (1 + len(EXAMPLES)))]
    rows += [
        _row([f"{count} x {name}", *[_choice(model, name, count) for model in EXAMPLES]]) for name, count in HARDWARE
    ]
    return "\n".join(rows)


def _choice(model: str, name: str, count: int) -> str:
    ways = {
        "built-in": builtin(model, name),
        "vLLM": vllm(model, name, count),
        "endpoint": endpoint(model, name, count),
    }
    hours = {what: way.gpu_hours / (count // way.gpus * way.gpus) for what, way in ways.items() if way is not None}
    if not hours:
        return "nothing fits"
    best = min(hours, key=lambda what: hours[what])
    cells: list[str] = []
    for what, spent in hours.items():
        way = ways[what]
        assert way is not None
        cell = f"{what}{f' TP {way.gpus}' if what != 'built-in' else ''} {spent:.0f} h"
        cells.append(f"**{cell}**" if what == best else cell)
    return ", ".join(cells)


if __name__ == "__main__":
    print(models_table(), choices_table(), sep="\n\n")  # noqa: T201
