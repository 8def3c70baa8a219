"""The commands serve and chat on a random model: what they print, how they are stopped, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.cluster.cli import main
from persona_atlas.cluster.serving.conversation import Turn

from chat_server import wait_until
from command_line import Answered, Refused
from free_port import free_port
from tiny_models import save_tiny_llama

LAYERS, WIDTH = 3, 32
CAP = ("--cap", "1.5", "--layers", "0,1", "--layer", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # It has one token in 259 that ends a response, so replies are as long as they may be, nearly always.
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def axis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published vectors, which name no model and have neither norms nor thresholds."""
    folder = tmp_path_factory.mktemp("axis")
    draw = np.random.default_rng(1)
    default_LD, *roles_PLD = draw.standard_normal((4, LAYERS, WIDTH))
    vectors = {"assistant_axis": default_LD - np.mean(roles_PLD, axis=0), "default_vector": default_LD}
    vectors |= {f"role_vectors/{name}": vector for name, vector in zip("abc", roles_PLD, strict=True)}
    (folder / "role_vectors").mkdir()
    for name, vector_LD in vectors.items():
        torch.save(torch.from_numpy(vector_LD), folder / f"{name}.pt")
    return folder


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))

    return give


def test_a_conversation_goes_on_and_each_reply_has_its_projection(
    says: Any, answered: Answered, model: Path, axis: Path
):
    given = ("chat", axis, "--model", model, "--seed", "4", "--max-tokens", "12")
    says("Who are you?", "", "Are you sure?")
    compared = answered(*given, *CAP, "--compare")
    says("Who are you?", "Are you sure?")
    capped = answered(*given, *CAP)
    says("Who are you?")
    plain = answered(*given, "--layer", "1")
    assert [turn["message"] for turn in compared["turns"]] == ["Who are you?", "Are you sure?"]
    for one, other in zip(compared["turns"], capped["turns"], strict=True):
        assert {name: one[name] for name in ("message", "reply")} == {n: other[n] for n in ("message", "reply")}
        assert one["projection"] == pytest.approx(other["projection"], rel=1e-4)
        assert one["projection"] >= 1.5 - 1e-4
        assert one["layer"] == 1
    assert compared["turns"][0]["plain"]["reply"] == plain["turns"][0]["reply"] != compared["turns"][0]["reply"]
    assert plain["turns"][0]["projection"] < 1.5
    assert compared["interventions"] == [{"cap": 1.5, "layers": [0, 1]}]


def test_people_see_both_replies(says: Any, capsys: pytest.CaptureFixture[str], model: Path, axis: Path):
    says("Who are you?")
    with pytest.raises(SystemExit) as ended:
        main(["chat", str(axis), "--model", str(model), *CAP, "--compare", "--max-tokens", "8", "--seed", "4"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert out.startswith("edited: ")
    assert "\nplain: " in out
    assert out.count("\n  [projection ") == 2


def test_json_stands_alone_on_stdout_of_a_terminal(
    says: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path, axis: Path
):
    says("Who are you?")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["chat", str(axis), "--model", str(model), "--max-tokens", "4", "--json"])
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["turns"]) == 1
    assert printed.err.count("> ") == 2


def test_ctrl_c_ends_a_reply_and_not_the_conversation(
    says: Any, answered: Answered, model: Path, axis: Path, monkeypatch: pytest.MonkeyPatch
):
    begun: list[Turn] = []
    replies = Turn.replies

    def interrupted(turn: Turn) -> Any:
        for event in replies(turn):
            if not begun:
                os.kill(os.getpid(), signal.SIGINT)
            begun.append(turn)
            yield event

    monkeypatch.setattr(Turn, "replies", interrupted)
    says("Who are you?", "And now?")
    first, second = answered("chat", axis, "--model", model, "--max-tokens", "60")["turns"]
    assert (first["is_stopped"], second["is_stopped"]) == (True, False)
    assert "projection" not in first


def test_serve_answers_on_this_machine_alone_until_ctrl_c(
    model: Path, axis: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_KEY", "secret")
    port = free_port()
    answers: list[Any] = []

    def ask() -> None:
        def is_up() -> bool:
            try:
                answers.append(json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)))
            except OSError:
                return False
            return True

        wait_until(is_up)
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}).encode()
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        answers.append(json.load(urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20)))
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    given = ["serve", str(axis), "--model", str(model), "--port", str(port), "--api-key-env", "MY_KEY", *CAP]
    with pytest.raises(SystemExit) as ended:
        main(given)
    asking.join()
    assert ended.value.code == 0
    health, answer = answers
    assert health["status"] == "ok"
    assert answer["persona_atlas"]["projection"] >= 1.5 - 1e-4
    assert answer["persona_atlas"]["compared_with"] == "role vectors"
    said = capsys.readouterr().err
    assert f"Serving tiny at http://127.0.0.1:{port}/v1; Ctrl-C stops it." in said
    assert said.rstrip().endswith("Stopped.")
    assert "Traceback" not in said


REFUSED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "no model": ((), "no_model_name", "--model"),
    "no percentile": (("--cap", "p0.25", "--layers", "0:2"), "no_such_percentile", "--cap"),
    "no layer": (("--cap", "1", "--layers", "3:9"), "no_such_layer", "--layers"),
    "no norm": (("--steer", "0.3"), "no_norm", "--steer"),
    "no number": (("--steer", "absolute:much"), "bad_value", "--steer"),
    "no temperature": (("--temperature", "nan"), "bad_value", "--temperature"),
    "no length": (("--max-tokens", "99999999999"), "bad_value", "--max-tokens"),
    "layers of nothing": (("--layers", "0:2"), "no_effect", "--layers"),
    "nothing to compare": (("--compare",), "no_effect", "--compare"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_named(refused: Refused, says: Any, model: Path, axis: Path, case: str):
    options, code, field = REFUSED[case]
    says("Who are you?")
    error = refused("chat", axis, *(() if case == "no model" else ("--model", model)), *options)
    assert (error["code"], error["field"]) == (code, field)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_bytes_that_are_no_utf8_are_refused(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, model: Path, axis: Path, errors: str
):
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", stdin)
    error = refused("chat", axis, "--model", model)
    assert (error["code"], error["field"]) == ("not_utf8", "stdin")


def test_serve_refuses_before_it_loads_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, axis: Path):
    def said(*options: str, of: Path = axis) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["serve", str(of), "--model", str(tmp_path / "none"), *options])
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert said("--api-key-env", "NOT_SET_ANYWHERE").startswith("Error: --api-key-env: the environment variable")
    assert said("--host", "203.0.113.7").startswith("Error: --port: cannot listen on 203.0.113.7:8000")
    assert said("--host", "a..b").startswith("Error: --port: cannot listen on a..b:8000")
    assert "there is no such file or directory" in said(of=tmp_path / "nothing")
