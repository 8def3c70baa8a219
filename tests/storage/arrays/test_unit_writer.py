"""Writing an attempt's block: what its manifest promises, and what is refused before a byte is written."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.work.rollouts import Canary
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.storage.arrays.codec import decode_chunk
from persona_atlas.storage.arrays.unit_writer import write_unit_result
from persona_atlas.storage.format.parquet import from_parquet
from persona_atlas.storage.format.records import Manifest
from persona_atlas.storage.locations.location import Location, open_location
from pydantic import ValidationError

from counted import Counted
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


def write(location: Location, plan: Plan, block: UnitResult) -> Manifest:
    return write_unit_result(location, block, rows_per_block=plan.rows_per_block, mantissa_bits=10, worker="w")


def test_a_manifest_tells_the_length_and_checksum_of_every_object(store_url: str, plan: Plan):
    location = open_location(store_url)
    manifest = write_unit(location, plan, UNIT, 4, FakeEngine(arrays=(MEAN, PROMPT)))
    assert [stored.path for stored in manifest.objects] == [
        f"rollouts/{UNIT}-4.parquet",
        "activations/resid_post/prompt_last/c/4/0/0",
        "activations/resid_post/response_mean/c/4/0/0",
    ]
    for stored in manifest.objects:
        data = location.read(stored.path)
        assert data is not None
        assert len(data) == stored.num_bytes
        assert hashlib.sha256(data).hexdigest() == stored.sha256


def test_a_manifest_tells_where_each_layer_lies(location: Location, plan: Plan):
    block = block_of(plan, UNIT, 4, FakeEngine(arrays=(MEAN, PROMPT)))
    manifest = write(location, plan, block)
    assert [(stored.hook_point, stored.pooling) for stored in manifest.blocks] == [PROMPT, MEAN]
    for stored in manifest.blocks:
        data = location.read(stored.path) or b""
        end = 0
        for layer, num_bytes in enumerate(stored.chunk_bytes):
            begin, end = end, end + num_bytes
            chunk_RD = decode_chunk(data[begin:end], plan.rows_per_block, 16)
            values_BD = block.arrays_BLD[(stored.hook_point, stored.pooling)][:, layer]
            np.testing.assert_allclose(chunk_RD[:3], values_BD, rtol=2**-11)
        assert len(stored.chunk_bytes) == 4


def test_a_manifest_has_a_line_for_every_rollout(location: Location, plan: Plan):
    addresses = list(plan.by_id[UNIT].addresses())
    block = block_of(plan, UNIT, 4, FakeEngine(empty=frozenset(addresses[:1])))
    manifest = write(location, plan, block)
    assert manifest.unit == plan.by_id[UNIT]
    assert (manifest.unit_id, manifest.attempt, manifest.row_block, manifest.num_rows) == (UNIT, 1, 4, 3)
    assert manifest.prompt_tokens == (3, 3, 3)
    assert manifest.content_tokens == tuple(rollout.num_content_tokens for rollout in block.rollouts)
    assert manifest.content_tokens[0] == 0
    assert manifest.num_response_tokens == sum(manifest.content_tokens) > 0
    assert manifest.finish_reasons == ("stop",) * 3


def test_a_manifest_without_a_line_for_every_rollout_is_refused(location: Location, plan: Plan):
    facts = write(location, plan, block_of(plan, UNIT, 4)).model_dump()
    for name in ("prompt_tokens", "content_tokens", "finish_reasons"):
        with pytest.raises(ValidationError, match="3 rollouts"):
            Manifest.model_validate(facts | {name: facts[name][:-1]})


def test_the_canarys_figures_go_into_the_manifest(location: Location, plan: Plan):
    canary = Canary(num_rollouts=1, relative_error_L=(1e-3,) * 4, cosine_L=(0.999,) * 4)
    block = block_of(plan, UNIT, 4)
    assert write(location, plan, replace(block, canary=canary)).canary == canary
    assert write(location, plan, replace(block, canary=None)).canary is None


def test_the_texts_are_written_before_the_objects_whose_unit_they_name(location: Location, plan: Plan):
    counted = Counted(location)
    manifest = write(counted, plan, block_of(plan, UNIT, 4, FakeEngine(arrays=(MEAN, PROMPT))))
    assert [asked.path for asked in counted.of("write")] == [stored.path for stored in manifest.objects]
    assert len(manifest.objects) == 3


def test_the_texts_lie_beside_with_their_rows(location: Location, plan: Plan):
    block = block_of(plan, UNIT, 4)
    manifest = write(location, plan, block)
    table = from_parquet(location.read(manifest.texts.path) or b"")
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


def test_a_number_that_overflows_in_rounding_is_refused_and_no_activation_is_written(location: Location, plan: Plan):
    block = block_of(plan, UNIT, 4)
    block.arrays_BLD[MEAN][0, 0, 0] = np.finfo(np.float32).max
    with pytest.raises(UnitError) as caught:
        write(location, plan, block)
    assert caught.value.code == "overflow"
    assert location.sizes("activations") == {}


def test_an_empty_response_has_no_numbers_of_its_own_and_its_prompts_are_kept(location: Location, plan: Plan):
    address = next(plan.by_id[UNIT].addresses())
    block = block_of(plan, UNIT, 0, FakeEngine(arrays=(MEAN, PROMPT), empty=frozenset({address})))
    block.arrays_BLD[PROMPT][0] = vector_of(address, PROMPT, 4, 16)
    table = from_parquet(location.read(write(location, plan, block).texts.path) or b"")
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


@pytest.mark.parametrize("pooling", ["prompt_last", "prompt_mean", "assistant_start", "user_mean"])
def test_a_prompt_pooling_without_numbers_is_refused_even_for_an_empty_response(
    location: Location, plan: Plan, pooling: str
):
    address = next(plan.by_id[UNIT].addresses())
    block = block_of(plan, UNIT, 0, FakeEngine(arrays=(("resid_post", pooling),), empty=frozenset({address})))
    with pytest.raises(UnitError, match=pooling):
        write(location, plan, block)


def test_a_unit_of_nothing_but_empty_responses_is_written_as_texts_alone(location: Location, plan: Plan):
    addresses = frozenset(plan.by_id[UNIT].addresses())
    manifest = write_unit(location, plan, UNIT, 4, FakeEngine(empty=addresses))
    assert [stored.path for stored in manifest.objects] == [f"rollouts/{UNIT}-4.parquet"]


def test_two_attempts_at_one_unit_share_no_object(location: Location, plan: Plan):
    paths = [stored.path for row_block in (3, 8) for stored in write_unit(location, plan, UNIT, row_block).objects]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("figure", [float("inf"), float("nan")])
def test_a_canary_that_is_not_finite_is_refused_before_a_byte_is_written(location: Location, plan: Plan, figure: float):
    block = block_of(plan, UNIT, 0, FakeEngine(arrays=(MEAN, PROMPT)))
    broken = replace(block, canary=Canary(1, (figure, 0.0, 0.0, 0.0), (1.0,) * 4))
    with pytest.raises(UnitError, match="canary"):
        write(location, plan, broken)
    assert location.is_empty()


def test_a_unit_under_interventions_of_which_nothing_was_recorded_has_empty_columns(tmp_path: Path):
    plan = small_plan()
    result = block_of(plan, plan.units[0].unit_id, 0)
    location = open_location(str(tmp_path / "run"))
    manifest = write_unit_result(
        location, result, rows_per_block=plan.rows_per_block, mantissa_bits=10, worker="w", is_edited=True
    )
    table = from_parquet(location.read(manifest.texts.path) or b"")
    assert table["edit_layers"].null_count == table.num_rows == len(result.rollouts)
    assert manifest.edited is None
    assert "edited" not in manifest.model_dump()
