"""The record of a run that no model made."""

from __future__ import annotations

from persona_atlas.jobs.model_facts import ModelFacts
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import RunRecord


def made_record(*, layers: int, d_model: int, units: int, rollouts: int, units_sha256: str = "0" * 64) -> RunRecord:
    """Make a record.

    Args:
        layers: Number of layers, all of them captured.
        d_model: Width of the residual stream.
        units: Number of planned units.
        rollouts: Number of rollouts of each.
        units_sha256: SHA-256 of the list of planned units, where there is one.
    """
    facts = ModelFacts(
        n_layers=layers,
        d_model=d_model,
        num_parameters=1,
        kv_values_per_token=1,
        dtype="float32",
        family="llama",
        max_context=2048,
        fingerprint="0" * 64,
    )
    spec = JobSpec.model_validate(
        {"model": {"source": "none"}, "personas": {"roles": {"names": ["*"]}}, "store": {"url": "unused"}}
    )
    return RunRecord.sealed(
        layout_version=layout.LAYOUT_VERSION,
        plan_digest="0" * 64,
        spec=spec,
        model=facts,
        layers=tuple(range(layers)),
        num_units=units,
        units_sha256=units_sha256,
        num_rollouts=units * rollouts,
        rows_per_block=rollouts,
        rendering={},
        versions={},
        created_at="2026-01-01T00:00:00+00:00",
    )
