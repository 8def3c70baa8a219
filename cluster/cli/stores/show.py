"""``persona-atlas show``: what a store holds."""

from __future__ import annotations

from typing import Any

import click

from ....storage.derived.reductions import current_reduction_id
from ....storage.query.run import Run, open_run
from ....storage.run.lease import live_driver
from .. import output
from ..options import endpoint_option, json_option, store_argument


@click.command()
@store_argument
@endpoint_option
@json_option
def show(store_url: str, endpoint_url: str | None, as_json: bool) -> None:
    """Say what the run at STORE holds and how complete it is. Works while it is running."""
    run = open_run(store_url, endpoint_url)
    facts = _facts(run)
    if as_json:
        output.document(facts)
        return
    personas = facts["personas"]
    driver = facts["driver"]
    output.table(
        f"Run at {run.url}",
        ["", ""],
        [
            ["model", f"{facts['model']} ({facts['n_layers']} layers x {facts['d_model']})"],
            ["complete", str(run.completeness)],
            ["driver", f"process {driver['pid']} on {driver['host']}" if driver else "none is at work"],
            ["rollouts", f"{facts['rollouts']:,}, {facts['empty_responses']} of them empty"],
            *[[f"{kind}s" if kind != "default" else kind, _names(names)] for kind, names in personas.items()],
            ["arrays", ", ".join(facts["arrays"])],
            ["layers", f"{len(facts['layers'])}: {facts['layers'][0]} to {facts['layers'][-1]}"],
            ["precision", f"{facts['mantissa_bits']} mantissa bits, float32 range"],
            ["reduction", facts["reduction"] or "none yet"],
            ["begun", facts["created_at"]],
        ],
    )


def _facts(run: Run) -> dict[str, Any]:
    record, index = run.record, run.index
    personas: dict[str, list[str]] = {}
    pairs = sorted(set(zip(index["kind"].to_pylist(), index["persona"].to_pylist(), strict=True)))
    for kind, name in pairs:
        personas.setdefault(kind, []).append(name)
    driver = live_driver(run.location)
    return {
        "url": run.url,
        "model": record.spec.model.source,
        "n_layers": record.model.n_layers,
        "d_model": record.model.d_model,
        "units_done": run.completeness.done,
        "units_planned": run.completeness.planned,
        "driver": {"host": driver.host, "pid": driver.pid} if driver else None,
        "rollouts": index.num_rows,
        "empty_responses": run.num_empty_responses,
        "personas": personas,
        "arrays": ["/".join(pair) for pair in record.arrays],
        "layers": list(run.layers),
        "token_layers": list(record.token_layers),
        "mantissa_bits": record.spec.store.mantissa_bits,
        "reduction": current_reduction_id(run.location),
        "created_at": record.created_at,
        "rendering": record.rendering,
        "versions": record.versions,
    }


def _names(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
