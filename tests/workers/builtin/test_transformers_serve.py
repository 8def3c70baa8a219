"""The server that comes with transformers, over HTTP, with a real model: what it generates is captured."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec_parts import GenerationSpec
from persona_atlas.storage.derived.scores import read_outcomes, scored_units
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.chat.spans import load_renderer
from persona_atlas.workers.responders.endpoint import EndpointResponder, check_endpoint

from command_line import Answered
from fakes import small_spec
from free_port import free_port
from plain_forward import POOLINGS, PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, requests_of
from stored_runs import small_run

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def served(smollm2_directory: Path) -> Iterator[str]:
    """The base URL of ``transformers serve`` with SmolLM2."""
    for module in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(module)
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(smollm2_directory)]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + 200
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not answer"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


# Two tests and not three: workers of pytest that share them start a server each, which takes 11 s of CPU.
def test_it_refuses_another_model_and_what_it_generates_is_captured_as_a_plain_forward_pass_sees_it(
    served: str, smollm2_directory: Path
):
    settings = engine_settings(smollm2_directory, layers=(0, 15, 29), max_new_tokens=12)
    conversations = load_renderer(smollm2_directory)
    with pytest.raises(InputError, match="somebody/else") as caught:
        check_endpoint(GenerationSpec(endpoint=served), "somebody/else", conversations.renderer)
    assert caught.value.field == "generation.model"
    generation = GenerationSpec(endpoint=served, concurrency=2)
    # It takes none of the fields that only some servers have.
    left_out = check_endpoint(generation, str(smollm2_directory), conversations.renderer)
    assert "repetition_penalty" in left_out
    engine = EndpointResponder(
        BuiltinEngine(settings),
        conversations,
        generation,
        str(smollm2_directory),
        settings.sampling,
        left_out=left_out,
    )
    requests = requests_of(4, system_prompt="You are a pirate.")
    to_do = iter(requests)
    captured = list(engine.generate(lambda: next(to_do, None)))
    assert {got.rollout.address for got in captured} == {request.address for request in requests}
    plain = PlainModel(smollm2_directory)
    for got in captured:
        assert got.rollout.has_vector
        # The server counts its own tokens, of which the end of turn is one; ours spell the same text.
        assert got.rollout.num_content_tokens <= 13
        states, _ = plain.run(conversation_ids(got.rollout))
        expected_of = pool(states[[0, 15, 29]], got.rollout)
        for name, expected in [(name, expected_of[name]) for name in POOLINGS]:
            assert relative_errors(got.vectors_LD["resid_post", name], expected).max() < 1e-4
    assert any(got.rollout.finish_reason == "length" for got in captured)


def test_it_judges_a_run(served: str, smollm2_directory: Path, tmp_path: Path, answered: Answered):
    """Its scores are poor, and every rollout has one, or the text of a reply that holds none."""
    store = tmp_path / "run"
    few = {"prompts": 1, "questions": 2}
    run = small_run(
        str(store), small_spec(str(store), personas={"roles": {"names": ["pirate"], **few}, "default": few})
    )
    options = ["--endpoint", served, "--model", str(smollm2_directory), "--judge", "smol", "--concurrency", "2"]
    done = answered("judge", store, *options, "--max-tokens", "4")
    assert (done["rollouts"], done["left"], done["failed"]) == (2, 0, [])
    outcomes = read_outcomes(run.location, "smol", scored_units(run.location)["smol"]).to_pylist()
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert outcome["reply"] is not None
        assert (outcome["score"] in (0, 1, 2, 3)) != (outcome["reason"] == "unreadable")
    assert done["tokens_in"] > 2 * 100
    assert answered("judges", store)["judges"][0]["scored"] == done["scored"]
