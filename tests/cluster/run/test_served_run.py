"""A whole run whose responses a server generates, in this process: what the store says about the server's tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from persona_atlas import open_run, run
from persona_atlas.cluster.cli import cli
from persona_atlas.storage.format import layout
from persona_atlas.storage.verification.verify import verify_run

from chat_server import Body, ChatServer, serving

NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer(answer=lambda _: "Arr!")) as running:
        yield running


@pytest.fixture
def spec(server: ChatServer, tiny_model_directory: Path, tmp_path: Path) -> dict[str, Any]:
    counts = {"prompts": 2, "questions": 2}
    return {
        "model": {"source": str(tiny_model_directory)},
        "personas": {"roles": {"names": ["pirate", "poet"], **counts}, "default": counts},
        "sampling": {"max_new_tokens": 12},
        "generation": {"endpoint": server.url, "model": "tiny"},
        "store": {"url": str(tmp_path / "run")},
    }


def shown(url: str) -> dict[str, Any]:
    return json.loads(CliRunner().invoke(cli, ["show", url, "--json"], standalone_mode=False).stdout)


def test_commit_records_and_index_say_how_many_responses_have_the_server_s_tokens(
    server: ChatServer, spec: dict[str, Any]
):
    def usage(body: Body, text: str) -> Body:
        # Every second answer, by its seed, was sampled as other tokens than its text becomes.
        return {"usage": {"completion_tokens": len(text) + 1 + 2 * (body["seed"] % 2)}}

    server.more = usage
    result = run(spec, progress=False)
    assert result.is_complete, result.failures
    odd = sum(body["seed"] % 2 for body in server.bodies if body["max_tokens"] > 1)
    expected = {"other_length": odd, "same_length": 12 - odd}
    assert 0 < odd < 12
    assert result.run.served_tokens == expected
    assert result.run.record.rendering["server_requests"] == {
        "sampling": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 12, **NEUTRAL},
        "left_out": [],
    }
    found = shown(result.run.url)
    assert found["served_tokens"] == expected
    assert "tokenised again" in CliRunner().invoke(cli, ["show", result.run.url]).stdout
    assert "of another length than the server counted" in result.run.location.read(layout.REPORT).decode()  # pyright: ignore
    record = json.loads(result.run.location.read(layout.commit_path("role.pirate.pos.p0.b0")) or b"")
    assert set(record["manifest"]["served"]["tokens"]) <= set(expected)
    assert verify_run(result.run.location).is_sound


def test_fields_that_a_server_does_not_take_are_in_the_record_and_in_every_commit(
    server: ChatServer, spec: dict[str, Any]
):
    server.unknown = frozenset({"top_k"})
    result = run(spec, progress=False)
    left_out = result.run.record.rendering["server_requests"]["left_out"]
    assert "top_k" in left_out
    assert "top_k" not in result.run.record.rendering["server_requests"]["sampling"]
    record = json.loads(result.run.location.read(layout.commit_path("role.pirate.pos.p0.b0")) or b"")
    assert record["manifest"]["served"]["fields_left_out"] == sorted(left_out)


def test_an_index_from_before_the_column_is_read_without_its_commit_records(spec: dict[str, Any]):
    from persona_atlas.storage.format.parquet import from_parquet, to_parquet

    location = run(spec, progress=False).run.location
    table = from_parquet(location.read(layout.INDEX) or b"")
    location.write(layout.INDEX, to_parquet(table.drop_columns(["served_tokens"])))
    for unit in location.names(layout.COMMITS):
        location.delete([f"{layout.COMMITS}/{unit}"])
    again = open_run(location.url)
    assert again.completeness.is_complete
    assert again.served_tokens == {}
