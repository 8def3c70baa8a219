"""Which variable's value may be sent to which server, and who has to say so."""

from __future__ import annotations

import pickle

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.endpoint_keys import from_store, refuse_key, with_receiver
from persona_atlas.jobs.specs.spec import JobSpec, make_spec


def spec(key: str | None = "OPENAI_API_KEY", endpoint: str = "http://gpu:8000/v1") -> JobSpec:
    return make_spec(
        {
            "model": {"source": "m"},
            "personas": {"default": {"prompts": 1}},
            "generation": {"endpoint": endpoint, "api_key_env": key},
            "store": {"url": "s"},
        }
    )


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "VLLM_API_KEY", "SGLANG_API_KEY", "PERSONA_ATLAS_KEY"])
def test_keys_of_chat_servers_may_be_sent(name: str):
    refuse_key(spec(name).generation)
    refuse_key(spec(None).generation)
    refuse_key(None)


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "openai_api_key", "OPENAI_API_KEY_2",
     "HOME", "XPERSONA_ATLAS_KEY"],
)  # fmt: skip
def test_no_other_variable_may_be_sent(name: str):
    with pytest.raises(InputError, match=f"is {name}, and only") as caught:
        refuse_key(spec(name).generation)
    assert (caught.value.field, caught.value.code) == ("generation.api_key_env", "no_such_key")


def test_a_spec_from_a_store_sends_its_key_only_to_a_server_that_the_user_names():
    stored = from_store(spec())
    for copied in (
        stored,
        pickle.loads(pickle.dumps(stored)),  # noqa: S301 - our own bytes
        stored.model_copy(deep=True),
    ):
        with pytest.raises(InputError, match="--send-key-to gpu:8000") as caught:
            refuse_key(copied.generation)
        assert caught.value.code == "key_not_confirmed"
    for receiver in ("gpu:8000", "http://gpu:8000/v1", "http://gpu:8000/v1/"):
        refuse_key(with_receiver(stored, receiver).generation)
    for receiver in ("gpu", "gpu:80", "http://other:8000/v1", ""):
        with pytest.raises(InputError, match="--send-key-to") as caught:
            with_receiver(stored, receiver)
        assert caught.value.code == "other_receiver"
    refuse_key(from_store(spec(None)).generation)
    with pytest.raises(InputError, match="sends no key"):
        with_receiver(from_store(spec(None)), "gpu:8000")


def test_the_mark_is_no_part_of_the_spec():
    assert from_store(spec()).model_dump_json() == spec().model_dump_json()
    assert from_store(spec()).digest == spec().digest


@pytest.mark.parametrize(
    "endpoint", ["http://", "http:///v1", "http://[::1/v1", "http://host:port/v1", "http://h:0/v1"]
)
def test_an_endpoint_without_a_host_or_port_is_refused(endpoint: str):
    with pytest.raises(InputError, match=r"generation\.endpoint"):
        spec(endpoint=endpoint)
