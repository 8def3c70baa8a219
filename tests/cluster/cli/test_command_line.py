"""Bad input on the command line: refused before anything runs, with one message, exit status 2 and pure JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from persona_atlas.cluster.cli import main

from command_line import Refused
from stored_runs import small_run
from tiny_models import save_tiny_llama


@pytest.fixture
def spec(tmp_path: Path, tiny_model_directory: Path) -> Path:
    """A valid spec with a tiny model and a store that does not exist yet."""
    counts = {"prompts": 1, "questions": 2}
    path = tmp_path / "job.yaml"
    data = {
        "model": {"source": str(tiny_model_directory)},
        "personas": {"roles": {"names": ["pirate"], **counts}, "default": counts},
        "sampling": {"max_new_tokens": 8},
        "store": {"url": str(tmp_path / "run")},
    }
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize(
    ("assignment", "field", "named"),
    [
        ("sampling.temprature=1", "sampling.temprature", "temperature"),
        ("personas.roles.names=[pirat]", "personas.roles.names", "pirate"),
        ("capture.layers=[3]", "capture.layers", "0 to 2"),
        ("personas.roles.prompts=6", "personas.roles.prompts", "at most 5"),
        ("store.url=/dev/null/run", "store.url", "/dev/null/run"),
        ("store.url=ftp://host/run", "store.url", "s3://"),
        ("model.source=./not-there", "model.source", "not-there"),
        ("model.source=package://no_such_package/x.gguf", "model.source", "Check the name"),
        ("placement.batch_tokens=2000000000", "model.source", "GB of cpu memory"),
        ("placement.replicas=4096", "placement.replicas", "at most"),
        ("placement.device=cuda", "placement.device", "GPU"),
    ],
)
def test_a_bad_field_is_named_with_a_fix_and_nothing_is_written(
    refused: Refused, spec: Path, assignment: str, field: str, named: str
):
    if field == "placement.device" and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a GPU")
    error = refused("run", spec, "--set", assignment)
    assert error["field"] == field
    assert named in f"{error['error']} {error.get('hint', '')}"
    assert not (spec.parent / "run").exists()


def test_a_model_whose_tokenizer_has_no_chat_template_is_refused(refused: Refused, spec: Path, tmp_path: Path):
    bare = save_tiny_llama(tmp_path / "bare", chat_template=None)
    error = refused("run", spec, "--set", f"model.source={bare}")
    assert error["code"] == "no_chat_template"
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_whole_is_refused(refused: Refused, spec: Path, tmp_path: Path):
    broken = save_tiny_llama(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    error = refused("run", spec, "--set", f"model.source={broken}")
    assert error["field"] == "model.source"
    assert "safetensors" in error["error"]
    assert not (tmp_path / "run").exists()


def test_a_store_of_another_job_is_refused_and_left_as_it_was(refused: Refused, spec: Path, tmp_path: Path):
    store = tmp_path / "run"
    small_run(str(store))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    error = refused("run", spec)
    assert error["code"] == "other_run"
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_a_folder_with_something_else_in_it_is_refused(refused: Refused, spec: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert refused("run", spec)["code"] == "not_a_run"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_named(refused: Refused, spec: Path, s3_endpoint: str):
    missing = ["--set", "store.url=s3://no-such-bucket-atlas/run", "--set", f"store.endpoint_url={s3_endpoint}"]
    assert refused("run", spec, *missing)["code"] == "no_bucket"


@pytest.mark.usefixtures("signals_as_before")
def test_an_error_for_people_is_a_sentence_and_a_fix(spec: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["run", str(spec), "--set", "personas.roles.names=[pirat]"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: personas.roles.names: the catalog 'builtin' has no role 'pirat'." in err
    assert "Did you mean 'pirate'?" in err


def test_a_checkpoint_with_code_of_its_own_is_refused_without_a_question(spec: Path, tmp_path: Path, refused: Refused):
    folder = tmp_path / "own-code"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoConfig": "configuration_x.XConfig"}}')
    (folder / "configuration_x.py").write_text("raise SystemExit('the code was run')\n")
    for command in ("plan", "run"):
        error = refused(command, spec, "--set", f"model.source={folder}")
        assert (error["code"], error["field"]) == ("custom_code", "model.source")
        assert "never runs a checkpoint's code" in error["error"]
