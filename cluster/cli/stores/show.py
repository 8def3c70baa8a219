"""``persona-atlas show``: describe the contents of a store."""

from __future__ import annotations

from typing import Any

import click

from ....analysis.summary import notes_of
from ....jobs.errors import StoreError
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....jobs.work.rollouts import served_text
from ....storage.derived.reductions import current_reduction_id, read_current_reduction
from ....storage.query.run import Run
from ....storage.query.vectors import VectorSet, open_vectors
from ....storage.run.lease import live_driver
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument
from .reduction_list import show_reductions


@click.command()
@store_argument
@endpoint_option
@reading_access_options
@click.option("--reductions", "wants_reductions", is_flag=True, help="List the store's reductions instead.")
@json_option
def show(store_url: str, endpoint_url: str | None, access: S3Access, wants_reductions: bool, as_json: bool) -> None:
    """Show the contents of the run at STORE and how complete it is, even while it is running.

    STORE may also hold imported vectors.
    """
    run = open_vectors(store_url, endpoint_url, access)
    if wants_reductions:
        show_reductions(run.location, as_json)
        return
    if isinstance(run, VectorSet):
        _show_vectors(run, as_json)
        return
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
            *_texts_of(contents["rendering"]),
            *([["server's tokens", served_text(run.served_tokens)]] if run.served_tokens else []),
            *([["conversations", f"{contents['conversations']:,}"]] if contents["conversations"] else []),
            *[[_heading(run, kind), _names(names)] for kind, names in personas.items()],
            *([["user", contents["user"]["description"]]] if contents["user"] else []),
            *_interventions(run, contents["edited"]),
            ["arrays", ", ".join(contents["arrays"])],
            ["layers", f"{len(contents['layers'])}: {contents['layers'][0]} to {contents['layers'][-1]}"],
            ["engine", contents["engine"]],
            ["precision", f"{contents['mantissa_bits']} mantissa bits, float32 range"],
            *([["passes", contents["passes"]]] if contents["passes"] else []),
            ["reduction", contents["reduction"] or "none yet"],
            ["created", contents["created_at"]],
        ],
    )
    for note in contents["notes"]:
        output.text(note)


def _show_vectors(vectors: VectorSet, as_json: bool) -> None:
    record, reduction = vectors.record, vectors.reduction
    axis = "none" if reduction.axis is None else "points toward the Assistant"
    contents = {
        "url": vectors.url,
        "imported": record.source,
        "model": record.model,
        "n_layers": record.n_layers,
        "d_model": record.d_model,
        "layers": list(vectors.layers),
        "personas": {"role": list(reduction.role_names), "trait": list(reduction.trait_names)},
        "axis": reduction.axis is not None,
        "default": reduction.default_vector is not None,
        "thresholds": list(reduction.threshold_labels),
        "reduction": reduction.reduction_id,
        "notes": list(record.notes),
        "created_at": record.created_at,
    }
    if as_json:
        output.document(contents)
        return
    output.table(
        f"Imported vectors at {vectors.url}",
        ["", ""],
        [
            ["model", f"{record.model} ({count_of(record.n_layers, 'layer')} x {record.d_model})"],
            ["imported from", f"{count_of(len(record.files), 'file')} ({record.source})"],
            ["rollouts", "none: there is no run"],
            ["roles", _names(list(reduction.role_names))],
            ["traits", _names(list(reduction.trait_names))],
            ["axis", axis],
            ["thresholds", ", ".join(reduction.threshold_labels) or "none"],
            ["layers", f"{len(vectors.layers)}: {vectors.layers[0]} to {vectors.layers[-1]}"],
            ["reduction", reduction.reduction_id],
            ["created", record.created_at],
        ],
    )
    for note in record.notes:
        output.text(note)


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
        "not_reached": index["finish_reason"].to_pylist().count("not_reached"),
        "user": _user(run),
        "served_tokens": run.served_tokens,
        "conversations": _num_conversations(run),
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
        "interventions": None if record.interventions is None else record.interventions.model_dump(mode="json"),
        "edited": run.edited,
        "engine": record.engine,
        "versions": record.versions,
        "notes": _notes(run),
    }


def _notes(run: Run) -> list[str]:
    """Say what the current reduction could not compute; none where there is no reduction."""
    try:
        reduction = read_current_reduction(run.location)
    except StoreError as error:
        # The rest of the store is as readable as before.
        return [str(error)]
    return [] if reduction is None else list(notes_of(reduction))


def _num_conversations(run: Run) -> int | None:
    """Count the conversations; None where every row is a single response to a question."""
    if not run.record.of_conversations:
        return None
    return len(run.index["conversation_index"].unique())


def _heading(run: Run, kind: str) -> str:
    """Name what the personas of a kind are; those of conversations are what their rows are grouped by."""
    if kind != "conversation":
        return kind if kind == "default" else f"{kind}s"
    spec = run.record.spec
    asked = {"domains": spec.drift, "categories": spec.prompts, "groups": spec.prefills}
    named = next((name for name, section in asked.items() if section is not None), "files")
    return "names" if spec.replays else named


def _user(run: Run) -> dict[str, Any] | None:
    """Describe who played the user; None where nobody did."""
    asked = run.record.spec.drift
    if asked is None:
        return None
    user = asked.user
    where = "the model itself" if user.is_same else user.model
    where += f" at {user.endpoint}" if user.endpoint is not None else ""
    return {"model": user.model, "endpoint": user.endpoint, "description": f"simulated by {where}"}


def _rollouts(contents: dict[str, Any]) -> str:
    if contents["prompts_only"]:
        return f"{contents['rollouts']:,}, prompts without a response"
    missed = f", {contents['not_reached']} of these not reached" if contents["not_reached"] else ""
    return f"{contents['rollouts']:,}, {contents['empty_responses']} of them empty{missed}"


def _texts_of(rendering: dict[str, Any]) -> list[list[str]]:
    """Format whose responses were read again, and how they became tokens; no lines for a run of its own texts."""
    if "texts_of" not in rendering:
        return []
    how = {"tokens": "as stored token ids", "template": "by a chat template", "plain": "as plain lines"}
    return [["texts of", f"{rendering['texts_of']}, {how[rendering['texts_rendering']]}"]]


def _interventions(run: Run, edited: dict[str, float]) -> list[list[str]]:
    """Format the edits that the rollouts were made under, and what these did; no lines for a run without any."""
    stored = run.record.interventions
    if stored is None:
        return []
    lines = [["intervention" if not number else "", str(entry)] for number, entry in enumerate(stored.entries)]
    if edited:
        share, correction = edited["share"], edited["correction"]
        lines.append(["edited", f"{share:.1%} of tokens and layers changed, on average by {correction:.3g}"])
    return lines


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
