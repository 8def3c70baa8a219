"""``persona-atlas show``: describe the contents of a store."""

from __future__ import annotations

from typing import Any

import click

from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....jobs.work.rollouts import served_text
from ....storage.derived.reductions import current_reduction_id
from ....storage.query.run import Run, open_run
from ....storage.run.lease import live_driver
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument


@click.command()
@store_argument
@endpoint_option
@reading_access_options
@json_option
def show(store_url: str, endpoint_url: str | None, access: S3Access, as_json: bool) -> None:
    """Show the contents of the run at STORE and how complete it is, even while it is running."""
    run = open_run(store_url, endpoint_url, access)
    contents = _contents(run)
    if as_json:
        output.document(contents)
        return
    personas = contents["personas"]
    driver = contents["driver"]
    output.table(
        f"Run at {run.url}",
        ["", ""],
        [
            ["model", f"{contents['model']} ({count_of(contents['n_layers'], 'layer')} x {contents['d_model']})"],
            ["complete", str(run.completeness)],
            *_growth(contents["additions"]),
            ["driver", f"process {driver['pid']} on {driver['host']}" if driver else "none is running"],
            ["rollouts", _rollouts(contents)],
            *([["server's tokens", served_text(run.served_tokens)]] if run.served_tokens else []),
            *[[f"{kind}s" if kind != "default" else kind, _names(names)] for kind, names in personas.items()],
            ["arrays", ", ".join(contents["arrays"])],
            ["layers", f"{len(contents['layers'])}: {contents['layers'][0]} to {contents['layers'][-1]}"],
            ["engine", contents["engine"]],
            ["precision", f"{contents['mantissa_bits']} mantissa bits, float32 range"],
            *([["passes", contents["passes"]]] if contents["passes"] else []),
            ["reduction", contents["reduction"] or "none yet"],
            ["created", contents["created_at"]],
        ],
    )


def _contents(run: Run) -> dict[str, Any]:
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
        "prompts_only": record.of_prompts,
        "served_tokens": run.served_tokens,
        "personas": personas,
        "arrays": ["/".join(pair) for pair in record.arrays],
        "layers": list(run.layers),
        "token_layers": list(record.token_layers),
        "mantissa_bits": record.spec.store.mantissa_bits,
        "reduction": current_reduction_id(run.location),
        "created_at": record.created_at,
        "additions": [
            {
                "number": addition.number,
                "units": addition.num_units,
                "rollouts": addition.num_rollouts,
                "created_at": addition.created_at,
            }
            for addition in record.additions
        ],
        "rendering": record.rendering,
        "passes": record.passes,
        "engine": record.engine,
        "versions": record.versions,
    }


def _rollouts(contents: dict[str, Any]) -> str:
    if contents["prompts_only"]:
        return f"{contents['rollouts']:,}, prompts without a response"
    return f"{contents['rollouts']:,}, {contents['empty_responses']} of them empty"


def _growth(additions: list[dict[str, Any]]) -> list[list[str]]:
    """Format what was added to the run since it was begun; no lines for a run that never grew."""
    return [
        [
            f"addition {addition['number']}",
            f"{count_of(addition['units'], 'unit')}, {count_of(addition['rollouts'], 'rollout')}, at "
            f"{addition['created_at']}",
        ]
        for addition in additions
    ]


def _names(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
