"""A secret that is handed in by any way is refused or hidden: it is printed nowhere and stored nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import persona_atlas
import pytest
from persona_atlas.cluster.cli import main
from persona_atlas.cluster.ray_text import plain
from persona_atlas.cluster.submission.submit import resolved
from persona_atlas.jobs.errors import AtlasError, InputError
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import open_run
from pydantic import ValidationError

from command_line import Answered
from documented import JOB
from fakes import small_spec

SECRET = "geheim99"
SPEC = "model: {source: nowhere}\nstore: {url: runs/x}\n"


@pytest.fixture(autouse=True)
def one_try(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(SPEC)


def printed_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail, with and without ``--json``, and return everything that it printed."""
    capsys.readouterr()
    printed = ""
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *more])
        out, err = capsys.readouterr()
        assert ended.value.code in (1, 2)
        assert "Traceback" not in err
        printed += out + err
    return printed


@pytest.mark.parametrize(
    "override",
    [
        f"store.url=s3://KEY:{SECRET}@bucket/x",
        f"store.url=s3://KEY:{SECRET}/with/slash@bucket/x",
        f"store.url=https://KEY:{SECRET}@host/x",
        f"store.endpoint_url=http://user:{SECRET}@host:9000",
        f"store.endpoint_url=http://user:{SECRET}/x@host:9000",
        f"store.endpoint_url=http://host:9000/?X-Amz-Signature={SECRET}",
        f"generation.endpoint=http://user:{SECRET}@host/v1",
        f"generation.endpoint=http://user:{SECRET}/x@host/v1",
        f"generation.endpoint=http://host/v1?api_key={SECRET}",
        f"model.source=https://user:{SECRET}@host/model",
        f"http://user:{SECRET}@host",
        f"store=http://user:{SECRET}@host",
        f"store.password={SECRET}",
    ],
)
def test_a_spec_with_a_secret_is_refused_without_repeating_it(capsys: pytest.CaptureFixture[str], override: str):
    for command in ("run", "submit"):
        assert SECRET not in printed_by(
            capsys, command, "job.yaml", "--set", "store.url=s3://bucket/x", "--set", override
        )


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("command", ["show", "verify", "probe-store", "status", "reduce", "gc"])
def test_a_secret_in_the_environments_endpoint_is_not_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, command: str
):
    monkeypatch.setenv(variable, f"http://user:{SECRET}@127.0.0.1:9")
    assert SECRET not in printed_by(capsys, command, "s3://bucket/x")
    assert SECRET not in printed_by(
        capsys, command, "s3://bucket/x", "--endpoint-url", f"http://me:{SECRET}@127.0.0.1:9"
    )


def test_a_secret_in_a_proxys_or_a_clusters_url_is_not_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    address = f"http://user:{SECRET}@127.0.0.1:9"
    assert SECRET not in printed_by(capsys, "status", "job-1", "--address", address)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, address)
    assert SECRET not in printed_by(capsys, "show", "s3://bucket/x", "--endpoint-url", "http://203.0.113.1:9000")


def test_a_spec_that_is_built_or_changed_in_python_is_validated_too(monkeypatch: pytest.MonkeyPatch):
    endpoint = f"http://user:{SECRET}@host"
    with pytest.raises(ValidationError) as built:
        JobSpec.model_validate({"model": {"source": "m"}, "store": {"url": "s3://b/x", "endpoint_url": endpoint}})
    with pytest.raises(InputError) as changed:
        small_spec("s3://bucket/x").replaced(store={"endpoint_url": endpoint})
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(InputError) as submitted:
        resolved(small_spec("s3://bucket/x"))
    for caught in (built, changed, submitted):
        assert "endpoint_url" in str(caught.value)
        assert SECRET not in str(caught.value) + repr(caught.value)


def test_a_run_stores_no_secret_of_its_environment(
    tiny_model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "ALL_PROXY"):
        monkeypatch.setenv(variable, f"http://user:{SECRET}@host:9000")
    job: dict[str, Any] = JOB | {"model": {"source": str(tiny_model_directory)}, "store": {"url": "run"}}
    result = persona_atlas.run(job)
    assert result.is_complete
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"run.json", "000001.json"} <= {path.name for path in files}
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    record = open_run(str(tmp_path / "run")).record
    assert record.spec.store.endpoint_url is None


def test_a_server_that_repeats_a_secret_does_not_get_it_printed(tmp_path: Path):
    location = open_location(str(tmp_path / "run"))
    with pytest.raises(AtlasError) as caught, location.errors():
        raise OSError(5, f"cannot reach http://user:{SECRET}@proxy:3128")
    assert SECRET not in str(caught.value)


def test_results_that_look_like_secrets_are_printed_as_they_are(
    tmp_path: Path, answered: Answered, capsys: pytest.CaptureFixture[str]
):
    prompt = "Answer with token=abc, password = hunter2 and https://me:you@host."
    (tmp_path / "roles").mkdir()
    (tmp_path / "questions.yaml").write_text("questions:\n  q1: Why is api_key=abc?\n")
    (tmp_path / "roles" / "spy.yaml").write_text(f"description: A spy.\nprompts: [{prompt!r}]\njudge: Spies.\n")
    (persona,) = answered("catalog", "spy", "--from", tmp_path)["personas"]
    assert prompt in persona["system_prompts"]
    (question,) = answered("catalog", "--questions", "--from", tmp_path)["questions"]
    assert question["question"] == "Why is api_key=abc?"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["catalog", "spy", "--from", str(tmp_path)])
    assert prompt in capsys.readouterr().out


def test_what_ray_says_is_printed_without_its_secrets():
    assert plain(f"cannot reach http://user:{SECRET}@head:8265") == "cannot reach http://***@head:8265"
