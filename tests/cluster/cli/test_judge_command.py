"""``judge`` and ``judges`` on the command line, against a real server: resumed, stopped, limited, refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.cluster.cli import main
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.storage.derived.scores import read_outcomes, scored_units
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.workers.judging.served_judge import ServedJudge

from chat_server import Body, ChatServer, serving, wait_until
from command_line import Answered, Refused
from fakes import FakeEngine, small_plan, small_spec
from stored_runs import small_run, store_run

EMPTY = RolloutAddress("role", "poet", "pos", 0, 1, 0)
NUM_JUDGED = 29
"""Of 36 rollouts 6 are the default's, and one of the others has no response."""


def is_trait(body: Body) -> bool:
    return "0 to 100" in body["messages"][-1]["content"]


def by_text(body: Body) -> str:
    """Score by the text of the request, as a judge at temperature 0 does."""
    number = int(hashlib.sha256(body["messages"][-1]["content"].encode()).hexdigest(), 16)
    return str(number % 101) if is_trait(body) else str(number % 4)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    url = str(tmp_path_factory.mktemp("store") / "run")
    return small_run(url, engine=FakeEngine(empty=frozenset({EMPTY})))


@pytest.fixture
def store(tmp_path: Path, stored: Run) -> Path:
    return Path(shutil.copytree(stored.url, tmp_path / "run"))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer(answer=by_text)) as running:
        yield running


def at(server: ChatServer, *more: str) -> list[str]:
    return ["--endpoint", server.url, "--model", server.model, *more]


def outcomes(store: Path | str, judge: str) -> list[dict[str, Any]]:
    run = open_run(str(store))
    return read_outcomes(run.location, judge, sorted(scored_units(run.location)[judge])).sort_by("row").to_pylist()


def files(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def asked_about(server: ChatServer) -> int:
    """Number of rollouts that were asked about: requests but for those that check the server."""
    return sum("Reply:" in body["messages"][-1]["content"] for body in server.bodies)


def test_everything_but_the_default_and_empty_responses_is_judged_once(
    answered: Answered, store: Path, server: ChatServer
):
    done = answered("judge", store, *at(server))
    assert (done["judge"], done["rollouts"], done["scored"], done["left"]) == ("tiny", NUM_JUDGED, NUM_JUDGED, 0)
    assert asked_about(server) == NUM_JUDGED
    found = outcomes(store, "tiny")
    texts = {line["row"]: line for line in open_run(str(store)).rollouts().to_pylist()}
    assert len(found) == NUM_JUDGED
    for outcome in found:
        line = texts[outcome["row"]]
        (body,) = [b for b in server.bodies if f"Reply: {line['response']}" in b["messages"][-1]["content"]]
        assert f"Question: {line['question']}" in body["messages"][-1]["content"]
        assert outcome["score"] == float(by_text(body))
        assert line["kind"] != "default"
    again = answered("judge", store, *at(server))
    assert (again["judged_before"], again["scored"], asked_about(server)) == (NUM_JUDGED, 0, NUM_JUDGED)
    assert answered("verify", store)["sound"]
    assert answered("query", store, "--min-score", "0")["rollouts"] == NUM_JUDGED + 6


def test_personas_and_kinds_are_judged_apart_and_together_they_are_all(
    answered: Answered, refused: Refused, store: Path, server: ChatServer
):
    assert answered("judge", store, *at(server, "--kind", "trait"))["scored"] == 12
    assert answered("judge", store, *at(server, "--persona", "p*"))["scored"] == 11
    assert answered("judge", store, *at(server))["scored"] == 6
    assert asked_about(server) == NUM_JUDGED
    assert refused("judge", store, *at(server, "--persona", "pirat"))["code"] == "nothing_to_judge"


def test_a_dry_run_sends_and_writes_nothing(answered: Answered, store: Path, server: ChatServer):
    before = files(store)
    options = ("--dry-run", "--price-in", "1", "--price-out", "2", "--requests-per-second", "1")
    estimate = answered("judge", store, *at(server, *options))["estimate"]
    assert estimate["rollouts"] == NUM_JUDGED
    assert estimate["seconds"] == NUM_JUDGED
    assert estimate["usd"] == pytest.approx((estimate["prompt_tokens"] + 2 * estimate["reply_tokens"]) / 1e6)
    answered("judge", store, *at(server))
    texts = sum(len(body["messages"][-1]["content"].split()) for body in server.bodies)
    assert 0.9 < estimate["prompt_tokens"] / (texts * 1.35 + 20 * NUM_JUDGED) < 1.2
    assert before.items() <= files(store).items()


def test_a_dry_run_says_what_its_time_assumes(store: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]):
    def printed(*options: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["judge", str(store), *options, "--dry-run"])
        assert not ended.value.code
        return capsys.readouterr().out

    assert "about 1 s, if a request takes 1 s, with 32 under way at a time." in printed(*at(server))
    engine, pirate = ("--engine", "--model", "any/model"), ("--persona", "pirate")
    assert "; the time on this machine is not estimated: try --persona with one name first." in printed(*engine)
    assert printed(*engine, *pirate).endswith("; the time on this machine is not estimated.\n")


def test_the_spend_limit_stops_it_and_the_next_call_goes_on(answered: Answered, store: Path, server: ChatServer):
    server.more = lambda _body, _text: {"usage": {"prompt_tokens": 200, "completion_tokens": 2}}
    options = ("--price-in", "1000", "--price-out", "1000", "--max-spend", "2.5", "--concurrency", "3")
    done = answered("judge", store, *at(server, *options), status=1)
    assert done["stopped"] == "spend_limit"
    assert 0 < done["scored"] < NUM_JUDGED
    assert done["usd"] == pytest.approx(done["scored"] * 0.202)
    assert done["usd"] <= 2.5
    assert len(outcomes(store, "tiny")) == done["scored"], "what was paid for is kept"
    rest = answered("judge", store, *at(server))
    assert rest["scored"] == NUM_JUDGED - done["scored"]
    assert asked_about(server) == NUM_JUDGED


def test_a_limit_without_room_for_one_request_opens_no_judge_and_writes_nothing(
    answered: Answered, store: Path, server: ChatServer
):
    before = files(store)
    options = ("--price-in", "1", "--price-out", "1", "--max-spend", "0")
    # There is no such model: loading it would be refused.
    for judge in (at(server), ["--engine", "--model", "no/such/folder"]):
        done = answered("judge", store, *judge, *options, status=1)
        assert (done["stopped"], done["scored"], done["left"]) == ("spend_limit", 0, NUM_JUDGED)
    assert (server.bodies, files(store)) == ([], before)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_judging_that_is_ended_goes_on_where_it_was(
    answered: Answered, store: Path, tmp_path: Path, server: ChatServer, how: signal.Signals, status: int
):
    shutil.copytree(store, tmp_path / "whole")
    answered("judge", tmp_path / "whole", *at(server))
    server.bodies.clear()
    server.delay_s = 0.05
    command = [sys.executable, "-m", "persona_atlas.cluster.cli", "judge", str(store), *at(server)]
    ended = subprocess.Popen([*command, "--concurrency", "2"], stderr=subprocess.DEVNULL, env=os.environ)
    wait_until(lambda: asked_about(server) >= 12, timeout_s=60)
    ended.send_signal(how)
    assert ended.wait(60) == status
    kept = outcomes(store, "tiny")
    assert 0 < len(kept) < NUM_JUDGED
    wait_until(lambda: server.is_idle, timeout_s=10)  # it answers those that were in flight, to nobody
    sent = asked_about(server)
    server.delay_s = 0
    done = answered("judge", store, *at(server))
    assert done["judged_before"] == len(kept)
    assert asked_about(server) == sent + NUM_JUDGED - len(kept)
    assert outcomes(store, "tiny") == outcomes(tmp_path / "whole", "tiny")
    if how is signal.SIGINT:
        assert sent - len(kept) <= 2 * 2, "what was answered before Ctrl-C is kept"


def test_one_that_is_stopped_says_how_many_are_kept_and_that_the_same_command_goes_on(
    store: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answers = ServedJudge.answers

    def stopped(judge: ServedJudge, *arguments: Any) -> Iterator[Any]:
        yield from islice(answers(judge, *arguments), 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(ServedJudge, "answers", stopped)
    with pytest.raises(SystemExit) as ended:
        main(["judge", str(store), *at(server)])
    assert ended.value.code == 130
    assert "5 rollouts of this call are judged and kept; the same command goes on." in capsys.readouterr().err
    assert len(outcomes(store, "tiny")) == 5


REPLIES = {0: "I like it.", 1: "2 or 3", 2: "7", 3: "", 4: "REFUSAL"}


def test_what_cannot_be_read_is_asked_again_and_kept_with_its_text(answered: Answered, store: Path, server: ChatServer):
    server.answer = lambda body: REPLIES[int(by_text(body)) % 5]
    done = answered("judge", store, *at(server))
    assert (done["left"], done["failed"]) == (0, [])
    found = outcomes(store, "tiny")
    unread = [one for one in found if one["reason"] == "unreadable"]
    assert {one["reply"] for one in unread} >= {"I like it.", "2 or 3", "7", ""}
    assert all(one["asks"] == 3 and one["detail"] and one["score"] is None for one in unread)
    assert {one["reason"] for one in found if one["reply"] == "REFUSAL"} <= {"refusal", "unreadable"}
    shown = answered("judges", store)["judges"][0]
    assert shown["scored"] + shown["unscored"] == NUM_JUDGED
    assert shown["reasons"] == done["unscored"]


def test_a_filter_of_the_server_is_named_and_not_asked_again(answered: Answered, store: Path, server: ChatServer):
    server.finish_reason = "content_filter"
    done = answered("judge", store, *at(server))
    assert done["unscored"] == {"content_filter": NUM_JUDGED}
    assert asked_about(server) == NUM_JUDGED


def test_a_server_that_goes_away_ends_it_with_what_is_done_kept(
    answered: Answered, store: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    # The client's own pauses would take minutes.
    monkeypatch.setattr(ServedJudge.__init__, "__defaults__", (None, 0))

    def answer_and_go(body: Body) -> str:
        server.script = ["500"] * 90 if asked_about(server) >= 5 else []
        return by_text(body)

    server.answer = answer_and_go
    done = answered("judge", store, *at(server, "--concurrency", "1"), status=1)
    assert (done["stopped"], done["scored"]) == ("judge_failed", 5)
    assert len(outcomes(store, "tiny")) == 5
    server.answer, server.script = by_text, []
    assert answered("judge", store, *at(server))["scored"] == NUM_JUDGED - done["scored"]


def test_two_judges_are_shown_side_by_side(answered: Answered, refused: Refused, store: Path, server: ChatServer):
    answered("judge", store, *at(server))
    server.answer = lambda body: "85" if is_trait(body) else "3"
    answered("judge", store, *at(server, "--judge", "kind"))
    assert refused("query", store, "--min-score", "1")["code"] == "which_judge"
    shown = answered("judges", store)
    first, second = shown["judges"]
    assert (first["name"], second["name"]) == ("kind", "tiny")
    assert first["distribution"]["role"] == {"0": 0, "1": 0, "2": 0, "3": 17}
    assert first["distribution"]["trait"]["80-89"] == 12
    (pair,) = shown["agreement"]
    assert pair["role"]["rollouts"] == 17
    assert [sum(row) for row in pair["role"]["confusion"]] == [0, 0, 0, 17]
    assert pair["role"]["weighted_kappa"] == pytest.approx(0)
    scores = {one["row"]: one["score"] for one in outcomes(store, "tiny")}
    kinds = {line["row"]: line["kind"] for line in open_run(str(store)).index.to_pylist()}
    differences = [abs(score - 85) for row, score in scores.items() if kinds[row] == "trait"]
    assert pair["trait"]["mean_absolute_difference"] == pytest.approx(sum(differences) / 12)
    assert refused("judges", store, "--judge", "knid")["code"] == "no_such_judge"


def test_a_name_belongs_to_one_model_and_one_rubric(
    answered: Answered, refused: Refused, store: Path, server: ChatServer, tmp_path: Path
):
    answered("judge", store, *at(server, "--judge", "mine", "--persona", "pirate"))
    before = files(store)
    server.model = "other"
    error = refused("judge", store, *at(server, "--judge", "mine"))
    assert (error["code"], error["field"]) == ("other_judge", "--judge")
    catalog = tmp_path / "catalog"
    (catalog / "roles").mkdir(parents=True)
    (catalog / "questions.yaml").write_text("questions: {q0: Who are you?}\n")
    (catalog / "roles" / "pirate.yaml").write_text("description: A pirate.\nprompts: [Arr.]\njudge: Says arr.\n")
    server.model = "tiny"
    options = ("--judge", "mine", "--persona", "pirate", "--catalog", str(catalog))
    assert refused("judge", store, *at(server, *options))["code"] == "other_rubric"
    assert refused("judge", store, *at(server, "--catalog", str(catalog)))["code"] == "unknown_persona"
    assert files(store) == before
    record = json.loads((store / "scores" / "mine" / "judge.json").read_text())
    assert (record["model"], record["endpoint"], list(record["rubrics"])) == ("tiny", server.url, ["role/pirate"])
    answered("judge", store, *at(server, "--judge", "mine", "--persona", "poet"))
    record = json.loads((store / "scores" / "mine" / "judge.json").read_text())
    assert list(record["rubrics"]) == ["role/pirate", "role/poet"]


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        (["--model", "m"], "no_judge", "--endpoint"),
        (["--model", "m", "--endpoint", "http://h/v1", "--engine"], "no_judge", "--endpoint"),
        (["--model", "m", "--endpoint", "h:80"], "bad_value", "--endpoint"),
        (["--model", "m", "--endpoint", "http://me:secret@h/v1"], "bad_value", "--endpoint"),
        (["--model", "m", "--endpoint", "http://h/v1?key=secret"], "bad_value", "--endpoint"),
        (["--model", "m", "--endpoint", "http://h/v1", "--api-key-env", "AWS_SECRET_ACCESS_KEY"], "no_such_key", None),
        (["--model", "m", "--endpoint", "http://h/v1", "--api-key-env", "a b"], "bad_value", "--api-key-env"),
        (["--model", "m", "--endpoint", "http://h/v1", "--api-key-env", "PERSONA_ATLAS_UNSET"], "no_api_key", None),
        (["--model", "m", "--endpoint", "http://h/v1", "--max-spend", "1"], "no_prices", "--max-spend"),
        (["--model", "m", "--endpoint", "http://h/v1", "--price-in", "1"], "no_prices", "--price-in"),
        (["--model", "m", "--endpoint", "http://h/v1", "--judge", "a/b"], "bad_judge", "--judge"),
        (["--model", "no/such/folder", "--engine"], None, "--model"),
        (["--model", "m", "--endpoint", "http://h/v1", "--catalog", "nowhere"], "no_catalog", "--catalog"),
        (["--model", "m", "--engine", "--api-key-env", "OPENAI_API_KEY"], "no_effect", "--api-key-env"),
    ],
)
def test_what_cannot_judge_is_refused_and_nothing_is_changed(
    refused: Refused, store: Path, options: list[str], code: str | None, field: str | None
):
    before = files(store)
    error = refused("judge", store, *options)
    assert code in (None, error["code"])
    assert field in (None, error["field"])
    assert error.get("hint")
    assert "secret" not in json.dumps(error)
    assert files(store) == before


def test_an_unknown_model_and_a_wrong_key_change_nothing(
    refused: Refused, store: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    before = files(store)
    assert refused("judge", store, "--endpoint", server.url, "--model", "gpt")["field"] == "--model"
    server.key = "right"
    monkeypatch.setenv("PERSONA_ATLAS_KEY", "wrong-key")
    error = refused("judge", store, *at(server, "--api-key-env", "PERSONA_ATLAS_KEY"))
    assert (error["code"], error["field"]) == ("endpoint_unauthorised", "--api-key-env")
    assert "wrong-key" not in json.dumps(error)
    assert files(store) == before


def test_a_run_on_s3_is_judged_while_units_are_missing(answered: Answered, s3_store_url: str, server: ChatServer):
    plan = small_plan(small_spec(s3_store_url))
    missing = {"role.pirate.pos.p1.b0"}
    store_run(s3_store_url, plan, leave_out=missing)
    assert answered("judge", s3_store_url, *at(server))["scored"] == 27
    assert len(outcomes(s3_store_url, "tiny")) == 27
    assert answered("judges", s3_store_url)["judges"][0]["left"] == 0


def test_a_model_in_this_process_judges_without_a_server(answered: Answered, store: Path, tiny_model_directory: Path):
    options = ["--engine", "--model", str(tiny_model_directory), "--judge", "own", "--persona", "pirate"]
    done = answered("judge", store, *options, "--max-tokens", "4")
    # A random model rates at random, and nothing else than a score can be its reply.
    assert done["scored"] == done["rollouts"] == 6
    found = outcomes(store, "own")
    assert len(found) == 6
    assert all(one["reply"].strip() in ("0", "1", "2", "3") and one["asks"] == 1 for one in found)
    record = json.loads((store / "scores" / "own" / "judge.json").read_text())
    assert (record["source"], record["model"], record["endpoint"]) == ("engine", str(tiny_model_directory), None)
    assert answered("judge", store, *options)["judged_before"] == 6
