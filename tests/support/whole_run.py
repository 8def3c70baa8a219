"""What every fault test ends with: a complete run, each rollout in it once, whole and its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from persona_atlas.jobs.rollouts import ArrayName
from persona_atlas.jobs.spec import JobSpec
from persona_atlas.jobs.units import RolloutAddress
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations.location import Location
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.verification.verify import Verification, verify_run

from fakes import small_plan, vector_of

PRECISION = 2.0**-11
"""Half of the last bit that is kept."""


def addresses_of(lines: pa.Table) -> list[RolloutAddress]:
    """The address of each line."""
    columns = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
    return [RolloutAddress(*address) for address in zip(*(lines[name].to_pylist() for name in columns), strict=True)]


def assert_whole(spec: JobSpec) -> Run:
    """No rollout of a ``plain_driver``'s job is lost, doubled or mixed, and ``verify`` finds nothing to say."""
    run = open_run(spec.store.url, spec.store.endpoint_url)
    assert run.completeness.is_complete, run.completeness
    assert verified(run.location).is_complete
    assert_right(run, spec, set(small_plan(spec).by_id))
    return run


def assert_right(run: Run, spec: JobSpec, unit_ids: Collection[str]) -> None:
    """The run has these units of a ``plain_driver``'s job and no others, and everything in them is as it was made."""
    plan = small_plan(spec)
    assert run.committed == set(unit_ids), sorted(run.committed ^ set(unit_ids))
    requests = {
        request.address: request
        for unit_id in unit_ids
        for request in plan.requests(plan.by_id[unit_id]).first(plan.by_id[unit_id])
    }
    lines = run.rollouts()
    # Each address once, none else.
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
    # And as anybody reads it who has Zarr and not us.
    with run.location.errors():
        plain: Any = zarr.open_array(run.location.zarr(read_only=True), path=layout.array_path(*array), mode="r")
        np.testing.assert_array_equal(plain.oindex[np.array(rows)], found.values)


def verified(location: Location) -> Verification:
    """A look at everything, in which nothing is wrong."""
    found = verify_run(location)
    assert not found.problems, found.problems
    return found
