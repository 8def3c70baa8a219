"""Checks at the end of every fault test: the run is complete, with each rollout once and its own vectors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.rollouts import ArrayName
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations.location import Location
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.verification.verify import Verification, verify_run

from fakes import small_plan, vector_of

PRECISION = 2.0**-11
"""Largest relative rounding error: half of the last mantissa bit that is kept."""


def addresses_of(lines: pa.Table) -> list[RolloutAddress]:
    """Return the address of each line of a table."""
    columns = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
    return [RolloutAddress(*address) for address in zip(*(lines[name].to_pylist() for name in columns), strict=True)]


def assert_whole(spec: JobSpec) -> Run:
    """Check that no rollout of a ``plain_driver``'s job is lost, doubled or mixed up, and that ``verify`` passes."""
    run = open_run(spec.store.url, spec.store.endpoint_url)
    assert run.completeness.is_complete, run.completeness
    assert verified(run.location).is_complete
    assert_right(run, spec, set(small_plan(spec).by_id))
    return run


def assert_right(run: Run, spec: JobSpec, unit_ids: Collection[str]) -> None:
    """Check that a run has exactly these units of a ``plain_driver``'s job, with the right texts and vectors."""
    plan = small_plan(spec)
    assert run.committed == set(unit_ids), sorted(run.committed ^ set(unit_ids))
    requests = {
        request.address: request
        for unit_id in unit_ids
        for request in plan.requests(plan.by_id[unit_id]).first(plan.by_id[unit_id])
    }
    lines = run.rollouts()
    # Each address exactly once.
    assert addresses_of(lines) == addresses_of(run.index) == sorted(requests)
    rows: list[int] = lines["row"].to_pylist()
    assert len(set(rows)) == len(rows)
    for line, address in zip(lines.to_pylist(), sorted(requests), strict=True):
        request = requests[address]
        assert (line["system_prompt"], line["question"]) == (request.system_prompt, request.question)
        assert (line["seed"], line["response"]) == (request.seed, f"I answer {address}")
    for array in run.record.arrays:
        _assert_numbers(run, array, rows, sorted(requests))


def _assert_numbers(run: Run, array: ArrayName, rows: list[int], addresses: list[RolloutAddress]) -> None:
    if not addresses:
        return
    found = run.activations(hook_point=array[0], pooling=array[1], layer="all")
    assert addresses_of(found.rollouts) == addresses
    expected_NLD = np.stack([vector_of(address, array, *found.values.shape[1:]) for address in addresses])
    np.testing.assert_allclose(found.values, expected_NLD, rtol=PRECISION)
    # The same through Zarr alone.
    with run.location.errors():
        plain: Any = zarr.open_array(run.location.zarr(read_only=True), path=layout.array_path(*array), mode="r")
        np.testing.assert_array_equal(plain.oindex[np.array(rows)], found.values)


def verified(location: Location) -> Verification:
    """Verify a run and check that it has no problems."""
    found = verify_run(location)
    assert not found.problems, found.problems
    return found
