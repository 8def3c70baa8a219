"""Given conversations as units: each turn stands in one unit, no conversation is cut, the texts are the identity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from persona_atlas.jobs.conversation import Conversation, Message
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sources.conversation_source import ROWS_PER_UNIT
from persona_atlas.jobs.sources.reading.read_conversations import parse_conversations
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.work.unit_size import TOKENS_PER_CHUNK

from conversations import given_plan
from fakes import FACTS


def given_spec(**changes: Any) -> JobSpec:
    data = {"model": {"source": "none"}, "conversations": {"source": "talks.jsonl"}, "store": {"url": "unused"}}
    return JobSpec.model_validate(data | changes)


def talk(index: int, turns: int, persona: str = "talks", **changes: Any) -> Conversation:
    messages = tuple(
        Message(role, f"{role} {turn} of {index}") for turn in range(turns) for role in ("user", "assistant")
    )
    whole = Conversation("conversation", persona, "pos", 0, index, 0, index, "", messages, "{}", f"talks, line {index}")
    return replace(whole, **changes)


@settings(deadline=None)
@hypothesis_given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from("ab")), min_size=1, max_size=12))
def test_every_turn_stands_in_one_unit_and_no_conversation_is_cut(shape: list[tuple[int, str]]):
    talks = [talk(index, turns, persona) for index, (turns, persona) in enumerate(shape)]
    plan = given_plan(*talks)
    rows = [request.given for unit in plan.units for request in plan.requests(unit).first(unit)]
    places = {(given.conversation.conversation_index, given.turn_index) for given in rows if given}
    assert len(rows) == len(places) == sum(t for t, _ in shape)
    for unit in plan.units:
        requests = list(plan.requests(unit).first(unit))
        assert [request.address for request in requests] == list(unit.addresses())
        assert unit.num_rollouts == len(requests) <= plan.rows_per_block
        whole = {request.given.conversation.conversation_index for request in requests if request.given}
        assert unit.num_rollouts == sum(talks[index].num_turns for index in whole)
        assert unit.num_rollouts <= ROWS_PER_UNIT or len(whole) == 1
        assert {request.address.persona for request in requests} == {unit.persona}
    figures = estimate(plan)
    assert figures.stored_bytes == len(rows) * 4 * 16 * 2
    assert figures.rows_per_assignment == 2 * figures.rows_per_batch


def test_requests_say_what_a_turn_answers():
    plan = given_plan(talk(0, 2, system_prompt="Be brief."))
    first, second = plan.requests(plan.units[0]).first(plan.units[0])
    assert (first.question, second.question) == ("user 0 of 0", "user 1 of 0")
    assert first.system_prompt == "Be brief."
    assert str(second.address).endswith("/turn3")


def test_the_texts_decide_the_digest_and_where_they_lie_does_not():
    plan = given_plan(talk(0, 2), talk(1, 1))
    moved = given_plan(talk(0, 2), talk(1, 1, place="elsewhere"), conversations={"source": "other.jsonl"})
    assert moved.digest == plan.digest
    changed = talk(1, 1)
    for other in (
        replace(changed, messages=(*changed.messages[:1], Message("assistant", "Else."))),
        replace(changed, system_prompt="Be."),
        replace(changed, extra='{"id": 1}'),
    ):
        assert given_plan(talk(0, 2), other).digest != plan.digest
    assert given_plan(talk(0, 2), talk(1, 1), seed=8, sampling={"temperature": 0}).digest == plan.digest
    assert given_plan(talk(0, 2), talk(1, 1), capture={"layers": [1]}).digest != plan.digest


def test_a_conversation_that_no_unit_can_hold_is_refused():
    large = replace(FACTS, n_layers=80, d_model=8192)
    assert given_plan(talk(0, 40), talk(1, 40), facts=large).rows_per_block == 40
    with pytest.raises(InputError, match="60 messages of the assistant; a unit of 64 MiB holds 51"):
        given_plan(talk(0, 60), facts=large)


def test_names_of_files_become_names_of_objects_each_its_own():
    names = ["a b", "a/b", "A_B", "x" * 300, "…"]
    plan = given_plan(*(talk(index, 1, name) for index, name in enumerate(names)))
    ids = [unit.unit_id for unit in plan.units]
    assert len({unit_id.lower() for unit_id in ids}) == len(names)
    assert all(len(unit_id) < 120 and "/" not in unit_id and " " not in unit_id for unit_id in ids)
    assert sorted(unit.persona for unit in plan.units) == sorted(names)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"personas": {"roles": {"names": ["pirate"]}}}, "leave one of the two out"),
        ({"generation": {"endpoint": "http://localhost:1/v1"}}, "leave generation out"),
        ({"capture": {"mode": "during_generation"}}, "leave it out, it follows from the rest"),
    ],
)
def test_a_spec_that_says_two_things_is_refused(changes: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        given_spec(**changes)


def test_the_mode_follows_from_the_spec_and_survives_being_stored():
    spec = given_spec()
    assert spec.capture.mode == "prefill_pass"
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValueError, match="nothing gives it texts"):
        JobSpec.model_validate({"model": {"source": "m"}, "capture": {"mode": "prefill_pass"}, "store": {"url": "s"}})


def test_a_servers_address_is_no_part_of_a_run_but_the_model_it_serves_is():
    def digest(**generation: Any) -> str:
        data = {"model": {"source": "m"}, "generation": generation, "store": {"url": "s"}}
        return JobSpec.model_validate(data).digest

    one = digest(endpoint="http://a:1/v1", model="served")
    assert one == digest(endpoint="http://b:2/v1/", model="served", concurrency=4, timeout_s=9, api_key_env="KEY")
    assert one != digest(endpoint="http://a:1/v1", model="other")
    assert one != JobSpec.model_validate({"model": {"source": "m"}, "store": {"url": "s"}}).digest


@pytest.mark.parametrize("endpoint", ["localhost:8000", "http://user:key@host/v1", "ftp://host"])
def test_an_endpoint_is_a_plain_url(endpoint: str):
    with pytest.raises(ValueError, match="endpoint"):
        JobSpec.model_validate({"model": {"source": "m"}, "generation": {"endpoint": endpoint}, "store": {"url": "s"}})


def test_units_of_given_texts_are_cut_by_the_tokens_that_their_bytes_may_come_to():
    large = replace(FACTS, d_model=8192, max_context=100_000)
    keeps = {"poolings": ["response_mean", "tokens"], "token_layers": [1]}
    # About 1200 tokens each of the 4096 that a unit holds, and never more than 3600.
    talks = [talk(i, 1, messages=(Message("user", "Hi"), Message("assistant", "abcd" * 900))) for i in range(7)]
    plan = given_plan(*talks, facts=large, capture=keeps)
    assert [unit.num_rollouts for unit in plan.units] == [3, 3, 1]
    assert 3 * 3600 <= plan.tokens_per_block < 3 * 3600 + TOKENS_PER_CHUNK
    short = given_plan(*talks, facts=replace(large, max_context=512), capture=keeps)
    assert [unit.num_rollouts for unit in short.units] == [7]
    assert short.tokens_per_block == 7 * 512
    assert given_plan(*talks, facts=large).tokens_per_block == 0
    with pytest.raises(
        InputError, match=r"every token of the assistant's messages in talks, line 3 .* 188 MiB"
    ) as caught:
        given_plan(talk(3, 1, messages=(Message("assistant", "abc" * 12_000),)), facts=large, capture=keeps)
    assert (caught.value.code, caught.value.field) == ("too_many_tokens", "capture.token_layers")


def test_reasoning_is_part_of_the_identity_wherever_it_was():
    def digest(content: Any, **keys: Any) -> str:
        answer = {"role": "assistant", "content": content} | keys
        given = parse_conversations([{"role": "user", "content": "Who are you?"}, answer])
        return given_plan(*given.conversations).digest

    def parts(thought: str) -> list[dict[str, str]]:
        return [{"type": "thinking", "thinking": thought}, {"type": "text", "text": "Nobody."}]

    assert digest(parts("Hm.")) == digest(parts("Hm."))
    digests = [digest(parts("Hm.")), digest(parts("Ho.")), digest(parts("")), digest("Nobody.")]
    digests += [digest("Nobody.", thinking="Hm."), digest(parts("Ho."), thinking="Hm.")]
    assert len(set(digests)) == len(digests)
