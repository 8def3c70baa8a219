"""The pooling ``tokens`` from the spec to the commands that read it: a real model, a directory and an S3 server.

The jobs run in this process; what Ray hands to a worker is the same for every pooling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import persona_atlas
import pyarrow.parquet as pq
import pytest
import yaml
from persona_atlas import open_run
from persona_atlas.storage.query.run import Run

from command_line import Answered, Refused
from conversations import line, write_lines
from plain_forward import PlainModel, relative_errors

pytestmark = pytest.mark.slow


def write_spec(path: Path, model: Path, store_url: str, **capture: object) -> Path:
    counts = {"prompts": 1, "questions": 5}
    spec = {
        "model": {"source": str(model)},
        "personas": {"roles": {"names": ["pirate", "poet"], **counts}, "default": counts},
        "sampling": {"max_new_tokens": 40},
        "capture": {"poolings": ["response_mean", "tokens"], "token_layers": [0, 2]} | capture,
        "placement": {"batch_tokens": 700},
        "store": {"url": store_url},
    }
    path.write_text(yaml.safe_dump(spec))
    return path


def assert_plain(run: Run, model: Path, layers: list[int]) -> None:
    """Check every token against one plain forward pass over its finished conversation, to the store's precision."""
    plain = PlainModel(model)
    found = run.activations(layer="all", pooling="tokens")
    assert found.layers == tuple(layers)
    texts = {text["row"]: text for text in run.rollouts().to_pylist()}
    for place, tokens_NKD in zip(found.rollouts.to_pylist(), found.per_rollout(), strict=True):
        text = texts[place["row"]]
        content = text["response_token_ids"][: text["num_content_tokens"]]
        states_LTD, _ = plain.run([*text["prompt_token_ids"], *content])
        expected_KND = states_LTD[layers, len(text["prompt_token_ids"]) :]
        assert relative_errors(tokens_NKD.transpose(1, 0, 2), expected_KND).max() < 1e-3


@pytest.mark.s3
def test_a_run_keeps_every_token_of_the_layers_asked_for(
    tmp_path: Path, s3_store_url: str, tiny_model_directory: Path, answered: Answered, refused: Refused
):
    spec = write_spec(tmp_path / "job.yaml", tiny_model_directory, s3_store_url)
    planned = answered("plan", spec)
    assert planned["token_layers"] == [0, 2]
    assert planned["stored_token_bytes"] == 15 * 40 * 2 * planned["d_model"] * 2
    outcome = persona_atlas.run(spec, progress=False)
    assert outcome.is_complete
    assert outcome.summary is not None, "the means are reduced as ever"

    run = open_run(s3_store_url)
    assert_plain(run, tiny_model_directory, [0, 2])
    checked = answered("verify", s3_store_url)
    assert (checked["problems"], checked["units_done"]) == ([], 3)
    assert answered("show", s3_store_url)["token_layers"] == [0, 2]

    tokens = run.index.filter(run.index["has_vector"])["num_content_tokens"].to_pylist()
    npz, parquet = tmp_path / "out.npz", tmp_path / "out.parquet"
    answer = answered("query", s3_store_url, "--pooling", "tokens", "--layer", "2", "--out", npz)
    assert answer["shape"] == [sum(tokens), planned["d_model"]]
    assert answer["rollouts"] == len(tokens)
    with np.load(npz) as file:
        assert np.diff(file["offsets"]).tolist() == tokens
    answered("query", s3_store_url, "--pooling", "tokens", "--persona", "poet", "--out", parquet)
    assert [len(lists) for lists in pq.read_table(parquet)["activations"].to_pylist()] == [
        count
        for count, persona in zip(tokens, run.index.filter(run.index["has_vector"])["persona"].to_pylist(), strict=True)
        if persona == "poet"
    ]
    assert ".npy" in refused("query", s3_store_url, "--pooling", "tokens", "--out", tmp_path / "out.npy")["error"]
    assert refused("reduce", s3_store_url, "--pooling", "tokens")["field"] == "--pooling"
    pooled = answered("query", s3_store_url, "--layer", "1")
    assert pooled["shape"] == [len(tokens), planned["d_model"]]


def test_given_texts_give_the_tokens_of_each_turn_and_need_no_pooling(
    tmp_path: Path, tiny_model_directory: Path, answered: Answered
):
    talks = [
        line("Hi", "Hello there.", "So?", "So. " * 70, "And?", "", "Well?", "Well. ☠", system_prompt="Be."),
        *[line(f"What is {n}?", f"It is {n}." * (1 + n % 5)) for n in range(20)],
    ]
    source = write_lines(tmp_path / "talks.jsonl", talks)
    store = tmp_path / "run"
    outcome = persona_atlas.extract(
        tiny_model_directory,
        source,
        store,
        poolings=["tokens"],
        token_layers=[1],
        overrides=["placement.batch_tokens=300"],
        progress=False,
    )
    assert (outcome.is_complete, outcome.summary) == (True, None)
    run = open_run(str(store))
    assert run.layers == (1,)
    assert run.activations(pooling="tokens").rollouts.num_rows == 23
    assert_plain(run, tiny_model_directory, [1])
    assert answered("verify", store)["problems"] == []


def test_what_no_unit_can_hold_is_refused_before_anything_runs(
    tmp_path: Path, tiny_model_directory: Path, refused: Refused
):
    spec = write_spec(tmp_path / "job.yaml", tiny_model_directory, str(tmp_path / "run"), token_layers="all")
    for command in ("plan", "run"):
        error = refused(command, spec, "--set", "sampling.max_new_tokens=1000000")
        assert error["field"] == "capture.token_layers"
        assert "MiB" in error["error"]
        assert "max_new_tokens" in error["hint"]
    assert not (tmp_path / "run").exists()
    without = write_spec(tmp_path / "job.yaml", tiny_model_directory, str(tmp_path / "run"), token_layers=None)
    assert refused("plan", without)["field"] == "capture.token_layers"


def test_the_layers_of_tokens_are_those_of_the_option(tmp_path: Path, tiny_model_directory: Path, refused: Refused):
    source = write_lines(tmp_path / "talks.jsonl", [line("Hi", "Hello there.")])
    asked = ("extract", "--model", tiny_model_directory, "--conversations", source, "--store", tmp_path / "run")
    error = refused(*asked, "--pooling", "tokens", "--token-layers", "1,9")
    assert error["field"] == "--token-layers"
    assert "layer 9" in error["error"]
    assert not (tmp_path / "run").exists()
