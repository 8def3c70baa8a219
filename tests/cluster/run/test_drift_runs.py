"""Conversations with a simulated user: the model itself, a model of its own, or a server; and how they end."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import persona_atlas
import pytest
import yaml
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.run.backend import worker_settings
from persona_atlas.cluster.run.prepare import prepare_job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.dialogues.simulated_user import END_MARK
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import JobSpec, make_spec
from persona_atlas.storage.query.run import Run
from rich.console import Console

from chat_server import ChatServer, serving
from published_axis import save_published_axis
from whole_run import verified

PERSONS = {
    "ada": {"description": "You are Ada.", "manner": "You write briefly.", "topics": ["Your oven.", "Your hen."]},
    "bo": {"description": "You are Bo.", "manner": "You ramble.", "topics": ["Your boat."]},
}


def job(model: Path, folder: Path, user: dict[str, Any], **changes: Any) -> JobSpec:
    topics = folder / "topics"
    topics.mkdir(exist_ok=True)
    for name in ("home", "sea"):
        (topics / f"{name}.yaml").write_text(yaml.safe_dump({"personas": PERSONS}))
    drift = {"conversations": str(topics), "per_domain": 2, "exchanges": 3, "user": {"max_new_tokens": 6} | user}
    return make_spec(
        {
            "model": {"source": str(model)},
            "drift": drift | changes.pop("drift", {}),
            "sampling": {"max_new_tokens": 8, "temperature": 1.0},
            "capture": {
                "poolings": ["response_mean", "prompt_last", "tokens"],
                "token_layers": [0],
                "canary": {"check": "every_unit"},
            },
            "placement": {"device": "cpu", "engine": "builtin", "threads": 1},
            "store": {"url": str(folder / "run"), "mantissa_bits": 23},
        }
        | changes
    )


def done(spec: JobSpec) -> Run:
    result = persona_atlas.run(spec, progress=False)
    assert result.is_complete, result.failures
    assert verified(result.run.location).is_complete
    return result.run


def lines_of(run: Run) -> list[dict[str, Any]]:
    return run.rollouts().to_pylist()


@pytest.fixture(scope="module")
def same(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return done(job(tiny_model_directory, tmp_path_factory.mktemp("same"), {"model": "same"}))


def test_the_model_may_play_the_user_itself(same: Run, tiny_model_directory: Path, tmp_path: Path):
    lines = lines_of(same)
    places = [(line["persona"], line["prompt_index"], line["question_index"], line["turn_index"]) for line in lines]
    conversations = [("home", 0, 0), ("home", 1, 0), ("sea", 0, 0), ("sea", 1, 0)]
    assert places == [(*one, turn) for one in conversations for turn in (1, 3, 5)]
    assert json.loads(lines[3]["extra"]) == {"domain": "home", "topic": "Your boat.", "user_persona": "bo"}
    assert [line["conversation_index"] for line in lines] == [index for index in range(4) for _ in range(3)]
    # Another run says the same, whatever shares its batch: every message has a seed from its place.
    few = job(
        tiny_model_directory,
        tmp_path,
        {"model": "same"},
        placement={"device": "cpu", "threads": 1, "batch_tokens": 2500},
    )
    said = [(line["question"], line["response"]) for line in lines]
    assert [(line["question"], line["response"]) for line in lines_of(done(few))] == said


def test_the_command_shows_where_the_conversations_led(same: Run, tiny_model_directory: Path, tmp_path: Path):
    counts = {"prompts": 1, "questions": 2}
    personas = {"roles": {"names": ["pirate", "poet"], **counts}, "default": counts}
    axis = {"model": {"source": str(tiny_model_directory)}, "personas": personas, "sampling": {"max_new_tokens": 6}}
    persona_atlas.run(axis | {"placement": {"device": "cpu"}, "store": {"url": str(tmp_path / "axis")}}, progress=False)
    file = tmp_path / "drift.yaml"
    file.write_text(yaml.safe_dump(same.record.spec.model_dump(mode="json")))
    found = CliRunner().invoke(cli, ["drift", str(file), "--axis", str(tmp_path / "axis"), "--json"])
    assert found.exit_code == 0, found.output
    printed = json.loads(found.stdout)
    assert (printed["units_worked"], printed["units_done"]) == (0, 4)
    assert [one["group"] for one in printed["drift"]["trajectories"]] == ["home", "sea"]
    planned = json.loads(CliRunner().invoke(cli, ["drift", str(file), "--dry-run", "--json"]).stdout)
    assert (planned["conversations"], planned["rollouts"], planned["user"]["model"]) == (4, 12, "same")
    # Of each turn all that was said before it is read again.
    assert planned["prompt_tokens"] > 4 * (3 * 20 + 3 * 6 + 3 * 8)


def test_a_dry_run_refuses_what_cannot_be_streamed_and_counts_what_can(tiny_model_directory: Path, tmp_path: Path):
    def planned(**changes: Any) -> dict[str, Any]:
        spec = job(tiny_model_directory, tmp_path, changes.pop("user", {"model": "same"}), **changes)
        file = tmp_path / "drift.yaml"
        file.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
        shown = CliRunner().invoke(cli, ["drift", str(file), "--dry-run", "--json"], standalone_mode=False)
        if shown.exception is not None:
            raise shown.exception
        return json.loads(shown.stdout)

    placement = {"device": "cpu", "weights": "streamed"}
    with pytest.raises(InputError, match="its workers generate") as refused:
        planned(placement=placement)
    assert refused.value.code == "not_streamed"
    served = {"endpoint": "http://nowhere.test/v1", "model": "tiny"}
    assert planned(placement=placement, generation=served, user=served)["weights"] == "streamed"


def test_a_study_grows_by_domains_and_says_why_it_does_not_by_topics(tiny_model_directory: Path, tmp_path: Path):
    few = {"domains": ["sea"], "exchanges": 1}

    def asked(**changes: Any) -> JobSpec:
        return job(tiny_model_directory, tmp_path, {"model": "same"}, drift=few | changes)

    before = done(asked(per_domain=2)).rollouts()
    with pytest.raises(InputError, match="would give another number to the conversation of") as refused:
        persona_atlas.run(asked(per_domain=3), grow=True, progress=False)
    assert (refused.value.code, refused.value.field) == ("cannot_grow", "drift.per_domain")
    grown = persona_atlas.run(asked(per_domain=2, domains=["sea", "home"]), grow=True, progress=False).run
    assert verified(grown.location).is_complete
    assert grown.rollouts(persona="sea")["response"].equals(before["response"])
    assert grown.index["conversation_index"].to_pylist() == [2, 3, 0, 1]


def test_an_axis_of_another_model_is_refused_before_anything_is_run(same: Run, tmp_path: Path):
    file = tmp_path / "drift.yaml"
    elsewhere = {"store": {"url": str(tmp_path / "new")}}
    file.write_text(yaml.safe_dump(same.record.spec.model_dump(mode="json") | elsewhere))
    other = save_published_axis(tmp_path / "axis", num_layers=2, d_model=4)
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(cli, ["drift", str(file), "--axis", str(other)], catch_exceptions=False)
    assert caught.value.field == "--axis"
    assert not (tmp_path / "new").exists()


def test_a_job_that_does_not_capture_what_the_axis_needs_is_refused_before_it_is_run(same: Run, tmp_path: Path):
    file, model = tmp_path / "drift.yaml", same.record.model
    changes = {"capture": {"poolings": ["prompt_last"]}, "store": {"url": str(tmp_path / "new")}}
    file.write_text(yaml.safe_dump(same.record.spec.model_dump(mode="json") | changes))
    axis = save_published_axis(tmp_path / "axis", num_layers=model.n_layers, d_model=model.d_model)
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(cli, ["drift", str(file), "--axis", str(axis)], catch_exceptions=False)
    assert (caught.value.code, caught.value.field) == ("not_captured", "capture")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "field"),
    [(["--png", "x.png"], "--png"), (["--set", "drift=null"], "drift"), (["--layer", "1"], "--layer")],
)
def test_the_command_refuses_what_is_no_study(options: list[str], field: str, same: Run, tmp_path: Path):
    file = tmp_path / "drift.yaml"
    file.write_text(
        yaml.safe_dump(same.record.spec.model_dump(mode="json") | {"store": {"url": str(tmp_path / "new")}})
    )
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(cli, ["drift", str(file), *options], catch_exceptions=False)
    assert caught.value.field == field
    assert not (tmp_path / "new").exists()


def test_a_model_of_its_own_may_play_the_user(tiny_model_directory: Path, tmp_path: Path):
    lines = lines_of(done(job(tiny_model_directory, tmp_path, {"model": str(tiny_model_directory)})))
    assert len(lines) == 12
    reached = [line for line in lines if line["finish_reason"] != "not_reached"]
    assert len(reached) >= 4
    assert all(line["question"] for line in reached)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer(model="user")) as behaviour:
        yield behaviour


def test_a_server_may_play_the_user_and_sees_the_chat_mirrored(
    server: ChatServer, tiny_model_directory: Path, tmp_path: Path
):
    server.answer = lambda body: f"I say {len(body['messages'])}."
    run = done(job(tiny_model_directory, tmp_path, {"model": "user", "endpoint": server.url}))
    lines = lines_of(run)
    assert [line["question"] for line in lines] == ["I say 2.", "I say 4.", "I say 6."] * 4
    asked = [body for body in server.bodies if len(body["messages"]) == 6]
    assert len(asked) == 4
    assert {tuple(message["role"] for message in body["messages"]) for body in asked} == {
        ("system", "user", "assistant", "user", "assistant", "user")
    }
    said = {tuple(message["content"] for message in body["messages"][2:]) for body in asked}
    assert said == {
        ("I say 2.", first["response"], "I say 4.", second["response"])
        for first, second in zip(lines[::3], lines[1::3], strict=True)
    }
    seeds = [body["seed"] for body in server.bodies if body["max_tokens"] == 6]
    assert len(set(seeds)) == len(seeds) == 12
    assert sum("Your oven." in body["messages"][1]["content"] for body in asked) == 2


def test_a_user_who_ends_a_conversation_leaves_rows_that_were_not_reached(
    server: ChatServer, tiny_model_directory: Path, tmp_path: Path
):

    def answer(body: dict[str, Any]) -> str:
        said = len(body["messages"])
        if any("Ada" in message["content"] for message in body["messages"]):
            return f"Good night.\n{END_MARK}" if said == 4 else "Hm."
        return "" if said == 2 else "Hm."

    server.answer = answer
    run = done(
        job(tiny_model_directory, tmp_path, {"model": "user", "endpoint": server.url}, drift={"domains": ["sea"]})
    )
    ada, bo = lines_of(run)[:3], lines_of(run)[3:]
    assert [line["finish_reason"] == "not_reached" for line in ada] == [False, True, True]
    assert [line["question"] for line in ada] == ["Hm.", "Good night.", ""]
    assert [line["response"] for line in ada[1:]] == ["", ""]
    assert [line["finish_reason"] for line in bo] == ["not_reached"] * 3
    assert run.index["has_vector"].to_pylist()[1:] == [False] * 5
    shown = json.loads(CliRunner().invoke(cli, ["show", run.url, "--json"]).stdout)
    assert (shown["not_reached"], shown["empty_responses"]) == (5, 5) if lines_of(run)[0]["has_vector"] else (5, 6)
    assert (shown["user"]["model"], shown["user"]["endpoint"]) == ("user", server.url)
    assert shown["conversations"] == 2
    assert re.search(r"conversations\W+2\W+domains\W+1: sea", CliRunner().invoke(cli, ["show", run.url]).stdout)
    note = run.query(conversation=0, turn=5).note
    assert note == "No rollout matches. 1 turn not reached: the conversation ended before."
    # Of a prompt pooling, too, a turn that was not reached has no number.
    stored = run.activations(pooling="prompt_last", layer="all")
    assert stored.values.shape[0] == 1 or np.isnan(stored.values[1:]).all()


def test_a_conversation_that_outgrows_the_context_ends(tiny_model_directory: Path, tmp_path: Path):
    line = {"turns": ["Hi", "word " * 600, "So?"]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(line))
    spec = make_spec(
        {
            "model": {"source": str(tiny_model_directory)},
            "prompts": {"source": str(tmp_path / "talks.jsonl")},
            "sampling": {"max_new_tokens": 8},
            "placement": {"device": "cpu"},
            "store": {"url": str(tmp_path / "run")},
        }
    )
    lines = lines_of(done(spec))
    assert [line["finish_reason"] == "not_reached" for line in lines] == [False, True, True]
    assert [line["question"].strip()[:4] for line in lines] == ["Hi", "word", "So?"]


@pytest.mark.parametrize("own", [False, True])
def test_a_person_for_whom_the_user_has_no_room_is_refused(own: bool, tiny_model_directory: Path, tmp_path: Path):
    spec = job(
        tiny_model_directory,
        tmp_path,
        {"model": str(tiny_model_directory) if own else "same", "max_new_tokens": 2040},
        drift={"domains": ["sea"], "per_domain": 1},
    )
    (failure,) = persona_atlas.run(spec, progress=False).failures
    assert "of the user's first message exceed the context of 2048 of the user's model" in failure.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": {"model": "same", "api_key_env": "OPENAI_API_KEY"}}, "there is no endpoint"),
        ({"user": {"endpoint": "ftp://x", "model": "m"}}, "must be an http"),
        ({"user": {"model": "same"}, "domains": ["moon"]}, "which is no domain of"),
        ({"user": {"model": "same"}, "per_domain": 4}, "which has 3 topics"),
    ],
)
def test_a_section_that_cannot_be_run_is_refused(
    changes: dict[str, Any], message: str, tiny_model_directory: Path, tmp_path: Path
):
    with pytest.raises(InputError, match=message):
        persona_atlas.plan(job(tiny_model_directory, tmp_path, {}, drift=changes), progress=False)


def test_vllm_is_refused_by_name_where_a_worker_would_run_the_user(tiny_model_directory: Path, tmp_path: Path):
    with pytest.raises(InputError, match="needs the built-in engine"):
        job(tiny_model_directory, tmp_path, {"model": "same"}, placement={"engine": "vllm"})


@pytest.mark.parametrize(
    ("asked", "share", "user_share"),
    [({"model": "same"}, 0.5, 0.0), ({"model": "other"}, 0.5, 0.5)],
    ids=["the model itself plays the user", "another model does"],
)
def test_workers_are_told_what_to_keep_between_turns(
    asked: dict[str, Any], share: float, user_share: float, tiny_model_directory: Path, tmp_path: Path
):
    asked = {name: str(tiny_model_directory) if value == "other" else value for name, value in asked.items()}
    found = prepare_job(job(tiny_model_directory, tmp_path, asked), Progress(Console(file=io.StringIO())))
    settings = worker_settings(found, Placement(1, "cpu", 1, 0), "sentinel")
    assert settings.dialogues is not None
    assert (settings.engine.kept_turns, settings.dialogues.user_kept_turns) == (share, user_share)
