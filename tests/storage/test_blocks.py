"""Writing an attempt's block: what its manifest promises, and what is refused before a byte is written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.jobs.block import UnitBlock
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.plan import Plan
from persona_atlas.storage.blocks import write_block
from persona_atlas.storage.location import Location, open_location
from persona_atlas.storage.records import Manifest
from persona_atlas.storage.texts import from_parquet

from fakes import FakeEngine, block_of, small_plan, small_spec, vector_of
from stored_runs import write_unit

UNIT = "role.pirate.pos.p1.b0"
MEAN = ("resid_post", "response_mean")
PROMPT = ("resid_post", "prompt_last")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan(small_spec(capture={"poolings": ["response_mean", "prompt_last"]}))


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


def write(location: Location, plan: Plan, block: UnitBlock) -> Manifest:
    return write_block(location, block, rows_per_block=plan.rows_per_block, mantissa_bits=10, worker="w")


def test_a_manifest_tells_the_length_and_checksum_of_every_object(store_url: str, plan: Plan):
    location = open_location(store_url)
    manifest = write_unit(location, plan, UNIT, 4, FakeEngine(arrays=(MEAN, PROMPT)))
    assert [stored.path for stored in manifest.objects] == [
        "activations/resid_post/prompt_last/c/4/0/0",
        "activations/resid_post/response_mean/c/4/0/0",
        f"rollouts/{UNIT}-4.parquet",
    ]
    for stored in manifest.objects:
        data = location.read(stored.path)
        assert data is not None
        assert len(data) == stored.num_bytes
        assert hashlib.sha256(data).hexdigest() == stored.sha256


def test_a_manifest_counts_rows_and_tokens(location: Location, plan: Plan):
    block = block_of(plan, UNIT, 4)
    manifest = write(location, plan, block)
    assert (manifest.unit_id, manifest.attempt, manifest.row_block, manifest.num_rows) == (UNIT, 1, 4, 3)
    assert manifest.num_prompt_tokens == 9
    assert manifest.num_response_tokens == sum(rollout.num_content_tokens for rollout in block.rollouts) > 0


def test_the_texts_lie_beside_with_their_rows(location: Location, plan: Plan):
    block = block_of(plan, UNIT, 4)
    manifest = write(location, plan, block)
    table = from_parquet(location.read(manifest.objects[-1].path) or b"")
    assert table["row"].to_pylist() == [4 * plan.rows_per_block + i for i in range(3)]
    for line, rollout in zip(table.to_pylist(), block.rollouts, strict=True):
        assert line["response"] == rollout.response
        assert line["system_prompt"] == rollout.system_prompt
        assert line["seed"] == rollout.seed
        assert tuple(line["response_token_ids"]) == rollout.response_token_ids
        assert line["question_index"] == rollout.address.question_index


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_and_nothing_is_written(location: Location, plan: Plan, value: float):
    block = block_of(plan, UNIT, 4, FakeEngine(arrays=(PROMPT, MEAN)))
    block.arrays_BLD[MEAN][1, 2, 5] = value
    with pytest.raises(UnitError, match="captured layer 2") as caught:
        write(location, plan, block)
    assert caught.value.code == "not_finite"
    assert str(block.rollouts[1].address) in str(caught.value)
    assert location.is_empty()


def test_a_number_that_overflows_in_rounding_is_refused_and_nothing_is_written(location: Location, plan: Plan):
    block = block_of(plan, UNIT, 4)
    block.arrays_BLD[MEAN][0, 0, 0] = np.finfo(np.float32).max
    with pytest.raises(UnitError):
        write(location, plan, block)
    assert location.is_empty()


def test_an_empty_response_has_no_numbers_of_its_own_and_its_prompts_are_kept(location: Location, plan: Plan):
    address = next(plan.by_id[UNIT].addresses())
    block = block_of(plan, UNIT, 0, FakeEngine(arrays=(MEAN, PROMPT), empty=frozenset({address})))
    block.arrays_BLD[PROMPT][0] = vector_of(address, PROMPT, 4, 16)
    table = from_parquet(location.read(write(location, plan, block).objects[-1].path) or b"")
    assert table["has_vector"].to_pylist() == [False, True, True]
    assert table["num_content_tokens"].to_pylist()[0] == 0


def test_an_empty_response_that_has_numbers_is_refused(location: Location, plan: Plan):
    address = next(plan.by_id[UNIT].addresses())
    block = block_of(plan, UNIT, 0, FakeEngine(empty=frozenset({address})))
    block.arrays_BLD[MEAN][0, 3] = 1.0
    with pytest.raises(UnitError) as caught:
        write(location, plan, block)
    assert caught.value.code == "empty_response"
    assert location.is_empty()


def test_a_prompt_pooling_without_numbers_is_refused_even_for_an_empty_response(location: Location, plan: Plan):
    address = next(plan.by_id[UNIT].addresses())
    block = block_of(plan, UNIT, 0, FakeEngine(arrays=(PROMPT,), empty=frozenset({address})))
    with pytest.raises(UnitError, match="prompt_last"):
        write(location, plan, block)


def test_a_unit_of_nothing_but_empty_responses_is_written_as_texts_alone(location: Location, plan: Plan):
    addresses = frozenset(plan.by_id[UNIT].addresses())
    manifest = write_unit(location, plan, UNIT, 4, FakeEngine(empty=addresses))
    assert [stored.path for stored in manifest.objects] == [f"rollouts/{UNIT}-4.parquet"]


def test_two_attempts_at_one_unit_share_no_object(location: Location, plan: Plan):
    paths = [stored.path for row_block in (3, 8) for stored in write_unit(location, plan, UNIT, row_block).objects]
    assert len(set(paths)) == len(paths)
