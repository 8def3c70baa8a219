"""The plan: the same spec gives the same units everywhere, each rollout stands in one unit, blocks fit the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.catalog import Catalog, load_catalog
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.personas import Question
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.sizing.devices import load_devices
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sizing.pricing import MAX_DEVICES, price
from persona_atlas.jobs.sources.persona_source import PersonaSource
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.unit_size import BLOCK_BYTES_LIMIT, TOKENS_PER_CHUNK, stored_bytes_per_value
from persona_atlas.storage.arrays.codec import encode_shard

from fakes import FACTS, small_plan, small_spec

LARGE = replace(FACTS, n_layers=80, d_model=8192)

DESCRIBE = """
import json, sys
sys.path.insert(0, {support!r})
from fakes import small_plan
plan = small_plan()
print(json.dumps([plan.digest, [[u.unit_id, [[str(r.address), r.seed, r.system_prompt, r.question]
    for r in plan.requests(u).first(u)]] for u in plan.units]]))
"""


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def addresses(plan: Plan) -> list[RolloutAddress]:
    return [address for unit in plan.units for address in unit.addresses()]


def refusal(**changes: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        small_plan(small_spec(**changes))
    return caught.value


def test_the_same_spec_gives_the_same_plan_in_every_process():
    code = DESCRIBE.format(support=str(Path(__file__).parents[1] / "support"))
    told = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        told.append(json.loads(done.stdout))
    plan = small_plan()
    requests = [
        [u.unit_id, [[str(r.address), r.seed, r.system_prompt, r.question] for r in plan.requests(u).first(u)]]
        for u in plan.units
    ]
    assert told[0] == told[1] == [plan.digest, requests]


def test_every_persona_prompt_and_question_is_counted():
    plan = small_plan()
    assert plan.rollouts_by_kind() == {"default": 2 * 3, "role": 3 * 2 * 3, "trait": 2 * 2 * 3}
    assert plan.num_rollouts == len(addresses(plan)) == 36
    assert list(dict.fromkeys(unit.kind for unit in plan.units)) == ["default", "role", "trait"]


def test_the_whole_catalog_makes_as_many_rollouts_as_the_released_data():
    personas = {"roles": {"names": ["*"]}, "traits": {"names": ["*"]}}
    plan = small_plan(small_spec(personas=personas))
    assert plan.rollouts_by_kind() == {"default": 5 * 240, "role": 275 * 5 * 240, "trait": 240 * 2 * 5 * 240}
    assert len(plan.by_id) == len(plan.units)


selections = st.builds(
    lambda names, prompts, questions, samples: {
        "names": sorted(names),
        "prompts": prompts,
        "questions": questions,
        "samples": samples,
    },
    st.sets(st.sampled_from(["stoic", "patient", "romantic", "ascetic"]), max_size=2),
    st.integers(1, 5) | st.none(),
    st.integers(1, 240) | st.none(),
    st.integers(1, 6),
)


@given(roles=selections, traits=selections, d_model=st.sampled_from([16, 2048, 8192]), n_layers=st.integers(1, 80))
@settings(max_examples=20, deadline=None)
def test_every_rollout_stands_in_exactly_one_unit_and_every_block_fits(
    catalog: Catalog, roles: dict[str, object], traits: dict[str, object], d_model: int, n_layers: int
):
    spec = small_spec(personas={"roles": roles, "traits": traits, "default": {"prompts": 1, "questions": 1}})
    plan = make_plan(spec, PersonaSource(spec, catalog), replace(FACTS, d_model=d_model, n_layers=n_layers))
    expected = {("default", "assistant_default", "pos", 0, 0, 0)}
    for kind, selection, polarities in (
        ("role", spec.personas.roles, ["pos"]),
        ("trait", spec.personas.traits, ["pos", "neg"]),
    ):
        expected |= {
            (kind, name, polarity, prompt, question, sample)
            for name in selection.names
            for polarity in polarities
            for prompt in range(selection.prompts or 5)
            for question in range(selection.questions or 240)
            for sample in range(selection.samples)
        }
    found = Counter(
        (unit.kind, unit.persona, unit.polarity, unit.prompt_index, question, sample)
        for unit in plan.units
        for question, sample in zip(unit.question_indices, unit.sample_indices, strict=True)
    )
    assert found.keys() == expected
    assert set(found.values()) == {1}
    row_bytes = n_layers * d_model * stored_bytes_per_value(10)
    for unit in plan.units:
        assert unit.num_rollouts <= plan.rows_per_block
        assert unit.num_rollouts * row_bytes <= BLOCK_BYTES_LIMIT or len(set(unit.question_indices)) == 1


def test_a_units_addresses_run_by_question_then_sample():
    spec = small_spec(
        personas={"roles": {"names": ["pirate"], "prompts": 1, "questions": 2, "samples": 2}, "default": {"prompts": 0}}
    )
    (unit,) = small_plan(spec).units
    assert [(a.question_index, a.sample_index) for a in unit.addresses()] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(("facts", "rows"), [(LARGE, 48), (FACTS, 240)], ids=["80x8192", "4x16"])
def test_a_block_of_240_questions_is_as_long_as_the_size_limit_allows(facts: object, rows: int):
    personas = {"roles": {"names": ["pirate"], "prompts": 1}, "default": {"prompts": 0}}
    assert isinstance(facts, type(FACTS))
    plan = small_plan(small_spec(personas=personas), facts=facts)
    assert plan.rows_per_block == rows
    assert [unit.num_rollouts for unit in plan.units] == [rows] * (240 // rows)


@given(questions=st.integers(1, 240), d_model=st.integers(1000, 200_000))
@settings(max_examples=60, deadline=None)
def test_no_block_of_several_questions_passes_the_size_limit(catalog: Catalog, questions: int, d_model: int):
    personas = {"roles": {"names": ["pirate"], "prompts": 1, "questions": questions}, "default": {"prompts": 0}}
    spec = small_spec(personas=personas)
    plan = make_plan(spec, PersonaSource(spec, catalog), replace(FACTS, n_layers=80, d_model=d_model))
    lengths = [unit.num_rollouts for unit in plan.units]
    assert sum(lengths) == questions
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) == 1 or max(lengths) * 80 * d_model * stored_bytes_per_value(10) <= BLOCK_BYTES_LIMIT


@pytest.mark.parametrize(("asked", "layers"), [("all", (0, 1, 2, 3)), ("middle", (2,)), ([3, 0], (0, 3)), ([1], (1,))])
def test_layers_become_ascending_blocks(asked: object, layers: tuple[int, ...]):
    assert small_plan(small_spec(capture={"layers": asked})).layers == layers


def test_a_layer_beyond_the_model_is_refused_with_the_last_that_there_is():
    error = refusal(capture={"layers": [1, 4]})
    assert (error.code, error.field) == ("no_such_layer", "capture.layers")
    assert "layer 4" in str(error)
    assert "from 0 to 3" in str(error)


@pytest.mark.parametrize(
    ("personas", "field", "available"),
    [
        ({"roles": {"names": ["pirate"], "prompts": 6}}, "personas.roles.prompts", 5),
        ({"traits": {"names": ["anxious"], "prompts": 6}}, "personas.traits.prompts", 5),
        ({"default": {"prompts": 6}}, "personas.default.prompts", 5),
        ({"roles": {"names": ["pirate"], "questions": 241}}, "personas.roles.questions", 240),
        ({"default": {"questions": 241}}, "personas.default.questions", 240),
        ({"roles": {"names": ["pirate"], "questions_from": "own"}}, "personas.roles.questions", 0),
    ],
)
def test_more_than_there_is_is_refused_with_what_there_is(personas: dict[str, object], field: str, available: int):
    error = refusal(personas=personas)
    assert (error.code, error.field, error.exit_status) == ("too_many", field, 2)
    assert f"which has {available}." in str(error)


def test_a_persona_the_catalog_lacks_is_refused_with_the_field_and_the_nearest_name():
    error = refusal(personas={"roles": {"names": ["pirat"]}})
    assert (error.code, error.field) == ("unknown_persona", "personas.roles.names")
    assert "'pirate'" in str(error)


def test_a_trait_can_be_asked_its_own_questions(catalog: Catalog):
    personas = {"traits": {"names": ["anxious"], "questions": 2, "questions_from": "own"}, "default": {"prompts": 0}}
    plan = small_plan(small_spec(personas=personas))
    own = tuple(question.text for question in catalog.persona("trait", "anxious").questions[:2])
    asked = [tuple(r.question for r in plan.requests(unit).first(unit)) for unit in plan.units]
    assert all(questions == own for questions in asked)


def test_a_request_has_the_prompt_of_its_polarity_and_the_question_of_its_address(catalog: Catalog):
    plan = small_plan()
    anxious = catalog.persona("trait", "anxious")
    unit = plan.by_id["trait.anxious.neg.p1.b0"]
    (request, *_) = plan.requests(unit).first(unit)
    assert request.system_prompt == anxious.counter_prompts[1] != anxious.prompts[1]
    assert request.question == catalog.questions[request.address.question_index].text
    assert request.seed == request.address.seed(plan.spec.seed)


def test_the_default_has_no_system_prompt_first_and_one_that_names_the_model():
    plan = small_plan(small_spec(personas={"default": {"questions": 1}}))
    prompts = [request.system_prompt for unit in plan.units for request in plan.requests(unit).first(unit)]
    assert prompts[0] == ""
    assert sum("Nobody" in prompt for prompt in prompts) == 1
    assert not any("{" in prompt for prompt in prompts)


def test_a_changed_question_or_model_is_another_plan(catalog: Catalog):
    plan = small_plan()
    reworded = replace(catalog, questions=(Question("q001", "Something else?"), *catalog.questions[1:]))
    not_asked = replace(catalog, questions=(*catalog.questions[:-1], Question("q240", "Something else?")))
    assert small_plan(catalog=reworded).digest != plan.digest
    assert small_plan(catalog=not_asked).digest == plan.digest
    assert small_plan(facts=replace(FACTS, fingerprint="0" * 64)).digest != plan.digest
    assert small_plan(small_spec(store={"url": "elsewhere"})).digest == plan.digest


def test_more_samples_of_one_question_than_a_unit_holds_are_refused():
    wide = replace(FACTS, n_layers=80, d_model=8192)
    personas = {"roles": {"names": ["pirate"], "samples": 52}, "default": {"prompts": 0}}
    with pytest.raises(InputError) as refused:
        small_plan(small_spec(personas=personas), facts=wide)
    assert refused.value.field == "personas.roles.samples"
    assert "at most 51" in str(refused.value)


def token_spec(questions: int = 240, samples: int = 1, max_new_tokens: int = 512, **capture: object):
    roles = {"names": ["pirate"], "prompts": 1, "questions": questions, "samples": samples}
    return small_spec(
        personas={"roles": roles, "default": {"prompts": 0}},
        capture={"poolings": ["response_mean", "tokens"], "token_layers": [1]} | capture,
        sampling={"max_new_tokens": max_new_tokens},
    )


@given(
    questions=st.integers(1, 240),
    samples=st.integers(1, 3),
    max_new_tokens=st.integers(1, 600),
    d_model=st.sampled_from([576, 4096, 8192]),
    layers=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_units_are_cut_so_that_every_token_of_their_longest_responses_fits(
    catalog: Catalog, questions: int, samples: int, max_new_tokens: int, d_model: int, layers: int
):
    spec = token_spec(questions, samples, max_new_tokens, token_layers=list(range(layers)))
    plan = make_plan(spec, PersonaSource(spec, catalog), replace(FACTS, d_model=d_model))
    assert plan.token_layers == tuple(range(layers))
    assert sum(unit.num_rollouts for unit in plan.units) == questions * samples
    for unit in plan.units:
        tokens = unit.num_rollouts * max_new_tokens
        assert tokens * layers * d_model * stored_bytes_per_value(10) <= BLOCK_BYTES_LIMIT
        assert tokens <= plan.tokens_per_block
    assert plan.tokens_per_block % TOKENS_PER_CHUNK == 0
    assert plan.tokens_per_block < plan.rows_per_block * max_new_tokens + TOKENS_PER_CHUNK


def test_tokens_of_a_large_model_take_small_units_and_those_of_all_its_layers_are_refused():
    assert small_plan(token_spec(), facts=LARGE).rows_per_block == 8
    with pytest.raises(InputError) as caught:
        small_plan(token_spec(token_layers="all"), facts=LARGE)
    error = caught.value
    assert (error.code, error.field) == ("too_many_tokens", "capture.token_layers")
    assert "640 MiB (512 tokens); a unit holds 64" in error.message
    assert "at most 8 layers" in (error.hint or "")
    assert small_plan(token_spec(token_layers=list(range(8))), facts=LARGE).rows_per_block == 1


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"samples": 9}, "at most 455 or ask for at most 8 samples"),
        ({"max_new_tokens": 5000}, "at most 4096"),
    ],
)
def test_what_one_layer_cannot_hold_is_refused_with_what_would_do(changes: dict[str, Any], hint: str):
    with pytest.raises(InputError) as caught:
        small_plan(token_spec(**changes), facts=LARGE)
    assert hint in (caught.value.hint or "")
    assert "layers, or" not in (caught.value.hint or ""), "there is one layer only"


def test_the_layers_of_tokens_are_among_those_that_are_captured():
    assert small_plan(token_spec(token_layers="middle")).token_layers == (2,)
    assert small_plan(token_spec(layers=[3, 0], token_layers="all")).token_layers == (0, 3)
    alone = small_plan(token_spec(poolings=["tokens"], token_layers=[3, 1]))
    assert alone.layers == alone.token_layers == (1, 3), "nothing is kept of the others"
    for asked in ([2], "middle"):
        with pytest.raises(InputError, match="layer 2") as caught:
            small_plan(token_spec(layers=[0, 1], token_layers=asked))
        assert caught.value.field == "capture.token_layers"
    with pytest.raises(InputError, match="layer 4") as caught:
        small_plan(token_spec(token_layers=[4]))
    assert caught.value.field == "capture.token_layers"


def test_a_server_that_counts_other_tokens_has_room_for_them():
    served = token_spec(questions=3).model_dump(exclude={"capture": {"mode"}}) | {
        "generation": {"endpoint": "http://s"}
    }
    assert small_plan(JobSpec.model_validate(served)).tokens_per_block == 2 * 3 * 512


@pytest.mark.parametrize("bits", [1, 7, 10, 17, 23])
def test_the_size_of_a_unit_follows_from_the_bytes_that_its_values_take(catalog: Catalog, bits: int):
    random = np.random.default_rng(0)
    values_BLD = np.exp(random.standard_normal(256)) * random.standard_normal((64, 2, 256))
    shard = encode_shard(values_BLD.astype(np.float32), 64, bits)
    assert shard is not None
    assert len(shard.data) / values_BLD.size == pytest.approx(stored_bytes_per_value(bits), rel=0.15)
    spec = small_spec(store={"url": "s", "mantissa_bits": bits}, personas={"roles": {"names": ["pirate"]}})
    facts = replace(FACTS, n_layers=80, d_model=8192)
    plan = make_plan(spec, PersonaSource(spec, catalog), facts)
    of_ten_bits = make_plan(spec, PersonaSource(spec, catalog), facts, sizes_bits=False)
    assert plan.rows_per_block * 80 * 8192 * stored_bytes_per_value(bits) <= BLOCK_BYTES_LIMIT
    assert (plan.units == of_ten_bits.units) == (bits <= 10)


@pytest.mark.parametrize(("more", "is_refused"), [(0, False), (1, True), (10**15, True)])
def test_responses_that_the_context_has_no_room_for_are_refused(catalog: Catalog, more: int, is_refused: bool):
    spec = small_spec(personas={"roles": {"names": ["pirate"]}, "default": {"prompts": 0}})
    source = PersonaSource(spec, catalog)
    words = source.longest_prompt(make_plan(spec, source, FACTS).units, lambda text: len(text.split()))
    assert words > 10
    spec = spec.model_copy(
        update={"sampling": spec.sampling.model_copy(update={"max_new_tokens": FACTS.max_context - words + more})}
    )
    if not is_refused:
        assert make_plan(spec, PersonaSource(spec, catalog), FACTS).units
        return
    with pytest.raises(InputError, match=f"Set it to at most {FACTS.max_context - words:,}") as caught:
        make_plan(spec, PersonaSource(spec, catalog), FACTS)
    assert (caught.value.field, caught.value.code) == ("sampling.max_new_tokens", "beyond_context")


def test_more_devices_than_there_are_anywhere_are_refused(catalog: Catalog):
    plan = small_plan()
    device = load_devices().devices["H100"]
    assert price(plan, estimate(plan), "H100", device, tensor_parallel=1, gpus=MAX_DEVICES).gpus <= len(plan.units)
    with pytest.raises(InputError, match="--gpus: asks for 100,000,000 H100"):
        price(plan, estimate(plan), "H100", device, tensor_parallel=1, gpus=10**8)
