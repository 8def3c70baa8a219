"""The Python interface on a tiny model, in this process: run, stop, resume, extract, and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import persona_atlas
import pytest
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.scheduling.job_state import JobState
from persona_atlas.storage.run.lease import newest_lease
from persona_atlas.storage.run.status import read_status

from documented import JOB
from other_families import ALONE_FAMILIES
from plain_forward import PlainModel, relative_errors
from tiny_families import save_tiny_model

TALK = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A pirate!"}]


@pytest.fixture
def job(tiny_model_directory: Path, tmp_path: Path) -> dict[str, Any]:
    """The documented job with the tiny model's real place, and a store of its own."""
    return JOB | {"model": {"source": str(tiny_model_directory)}, "store": {"url": str(tmp_path / "run")}}


def model_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "model"]


def test_a_job_runs_reduces_and_reports_in_this_process(job: dict[str, Any]):
    result = persona_atlas.run(job, progress=False)
    assert (result.planned, result.done, result.worked, result.failures) == (7, 7, 7, ())
    assert result.is_complete
    assert result.summary is not None
    assert result.report is not None
    assert "<html" in Path(result.report).read_text()
    assert persona_atlas.verify(result.run).is_complete
    assert persona_atlas.reduce(result.run, progress=False).axis is not None


def test_a_finished_job_is_not_done_again(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    persona_atlas.run(job, progress=False)
    monkeypatch.setattr("persona_atlas.cluster.run.local.load_engine", None)
    assert persona_atlas.run(job, progress=False).worked == 0


def test_a_job_in_this_process_loads_no_ray(job: dict[str, Any]):
    program = (
        "import json, sys, persona_atlas\n"
        "result = persona_atlas.run(json.loads(sys.argv[1]), progress=False)\n"
        "print(result.is_complete, 'ray' in sys.modules)"
    )
    command = [sys.executable, "-c", program, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "True False"


def test_ctrl_c_keeps_what_is_committed_and_the_next_call_does_the_rest(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    committed: list[str] = []
    whole = Progress.units

    def interrupting(self: Progress, ledger: Any, manifest: Any) -> None:
        whole(self, ledger, manifest)
        if manifest is not None:
            committed.append(manifest.unit_id)
        if len(committed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "units", interrupting)
    with pytest.raises(KeyboardInterrupt):
        persona_atlas.run(job, progress=False)
    monkeypatch.setattr(Progress, "units", whole)
    run = persona_atlas.open_run(job["store"]["url"])
    done = run.completeness.done
    assert 3 <= done < 7
    lease = newest_lease(run.location)
    assert lease is not None
    assert lease.released
    status = read_status(run.location, lease.generation)
    assert status is not None
    assert status.state is JobState.CANCELLED
    shown = CliRunner().invoke(cli, ["status", job["store"]["url"]])
    assert "does the rest" in " ".join(shown.stdout.split())
    result = persona_atlas.run(job, progress=False)
    assert (result.done, result.worked) == (7, 7 - done)
    assert persona_atlas.verify(result.run).is_sound


def test_ctrl_c_in_the_middle_of_a_response_stops_the_model_too(job: dict[str, Any], signals_as_before: None):
    # Python heeds no SIGINT in a process that was started in the background, as these tests may be.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # One unit of 2,400 responses: minutes of work.
    personas = {"roles": {"names": ["pirate"], "prompts": 1, "samples": 10}, "default": {"prompts": 0}}
    long = job | {"personas": personas, "sampling": {"max_new_tokens": 1500, "temperature": 2.0, "top_p": 1.0}}
    before, main = set(model_threads()), threading.main_thread().ident
    assert main is not None

    def interrupt_when_generating() -> None:
        while not set(model_threads()) - before:
            time.sleep(0.05)
        time.sleep(0.3)
        # A real signal: only that wakes a thread which waits for the model.
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt_when_generating, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        persona_atlas.run(long, progress=False)
    for thread in set(model_threads()) - before:
        thread.join(60)
        assert not thread.is_alive(), "the model works on for nobody"


def test_conversations_in_memory_are_those_of_a_file(tiny_model_directory: Path, tmp_path: Path):
    talks = [TALK, {"messages": [*TALK[:1], {"role": "assistant", "content": "No one."}], "topic": "names"}]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(talks))
    model, store = str(tiny_model_directory), str(tmp_path / "run")
    result = persona_atlas.extract(model, talks, store, progress=False)
    assert result.worked == 1
    from_file = persona_atlas.extract(model, path, tmp_path / "from-file", progress=False)
    found, expected = (one.run.activations(layer="all") for one in (result, from_file))
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.rollouts["conversation_index"].to_pylist() == [0, 1]
    assert json.loads(result.run.rollouts()["extra"][1].as_py()) == {"topic": "names"}
    # The texts make the run, and not where they lie.
    assert persona_atlas.extract(model, path, store, progress=False).worked == 0


def test_what_is_no_conversation_is_named(tiny_model_directory: Path, tmp_path: Path):
    for talks, told in (
        ([TALK, [{"role": "pirate", "content": "Arr"}]], "entry 2"),
        ([{"role": "assistant", "content": {1, 2}}], "JSON"),
        ([], "list"),
    ):
        with pytest.raises(persona_atlas.InputError) as refused:
            persona_atlas.extract(str(tiny_model_directory), talks, tmp_path / "run", progress=False)
        assert told in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_spec_may_be_a_file_a_mapping_or_a_spec(job: dict[str, Any], tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job))
    plans = [persona_atlas.plan(spec) for spec in (job, path, str(path), persona_atlas.load_spec(path))]
    assert len({plan.digest for plan in plans}) == 1
    assert persona_atlas.estimate(plans[0]).response_tokens == 14 * 8


@pytest.mark.parametrize(
    ("options", "field"),
    [({"layers": 1}, "capture.layers"), ({"poolings": 5}, "capture.poolings"), ({"token_layers": 1.5}, "capture")],
)
def test_what_is_no_list_is_refused_by_its_field(
    options: dict[str, Any], field: str, tiny_model_directory: Path, tmp_path: Path
):
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    with pytest.raises(persona_atlas.InputError) as refused:
        persona_atlas.extract(tiny_model_directory, talk, tmp_path / "run", progress=False, **options)
    assert (refused.value.field or "").startswith(field)


@pytest.mark.parametrize("replicas", [0, -1])
def test_an_impossible_number_of_replicas_is_refused(job: dict[str, Any], replicas: int):
    with pytest.raises(persona_atlas.InputError) as refused:
        persona_atlas.run(job, replicas=replicas, progress=False)
    assert refused.value.field == "placement.replicas"


@pytest.mark.ray
@pytest.mark.slow
def test_two_replicas_run_on_ray_and_give_the_same_texts(job: dict[str, Any], tmp_path: Path):
    result = persona_atlas.run(job, replicas=2, progress=False)
    assert result.worked == 7
    alone = persona_atlas.run(job | {"store": {"url": str(tmp_path / "alone")}}, progress=False)
    assert result.run.rollouts()["response"].to_pylist() == alone.run.rollouts()["response"].to_pylist()


def test_a_model_whose_texts_run_alone_is_right_and_the_run_tells_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    directory = save_tiny_model(tmp_path / "bloom", ALONE_FAMILIES["bloom"]())
    answers = ["A pirate!", "No.", "An accountant, what else would I be?"]
    talks = [[TALK[0], {"role": "assistant", "content": answer}] for answer in answers]
    result = persona_atlas.extract(str(directory), talks, store=str(tmp_path / "run"))
    assert result.is_complete
    plain = PlainModel(directory)
    found = result.run.activations(layer="all")
    for row, rollout in zip(found.values, result.run.rollouts().to_pylist(), strict=True):
        states_LTD = plain.outputs([*rollout["prompt_token_ids"], *rollout["response_token_ids"]])
        expected_LD = states_LTD[:, len(rollout["prompt_token_ids"]) :].mean(axis=1)
        # Stored values are rounded to some bits of the mantissa.
        assert relative_errors(row, expected_LD).max() < 2e-3
    assert result.run.record.passes.startswith("All texts have forward passes of their own")
    assert result.run.record.passes in capsys.readouterr().err.replace("\n", " ")


def test_conversations_that_cannot_be_read_are_left_out_counted_and_listed(
    tiny_model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    talks = tmp_path / "talks.jsonl"
    talks.write_text(json.dumps({"messages": TALK}) + "\n{broken\n" + json.dumps({"messages": TALK, "id": 7}) + "\n")
    model, store = str(tiny_model_directory), tmp_path / "run"
    with pytest.raises(persona_atlas.InputError, match="line 2"):
        persona_atlas.extract(model, talks, store, progress=False)
    assert not store.exists()
    result = persona_atlas.extract(model, talks, store, skip_invalid=True)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "1 conversation that cannot be read: see skipped.jsonl" in said
    assert (result.skipped, result.is_complete) == (1, True)
    assert result.run.rollouts()["conversation_index"].to_pylist() == [0, 2]
    (listed,) = [json.loads(line) for line in (store / "skipped.jsonl").read_text().splitlines()]
    assert (listed["file"], listed["place"]) == (str(talks), f"{talks}, line 2")
    assert listed["reason"].startswith("is not JSON")
    assert persona_atlas.verify(store).is_sound
    again = persona_atlas.extract(model, talks, store, skip_invalid=True, progress=False)
    assert (again.worked, again.skipped) == (0, 1)
    in_memory = [TALK, [{"role": "user", "content": 3}], TALK]
    result = persona_atlas.extract(model, in_memory, tmp_path / "other", skip_invalid=True, progress=False)
    assert (result.skipped, result.run.rollouts().num_rows) == (1, 2)
