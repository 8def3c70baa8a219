"""Rollouts of a finished store against plain passes of a tiny model: right ones, wrong ones, and another model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import persona_atlas
import pytest
from persona_atlas.cluster.run import recompute
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import RunRecord
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import Run, run_at
from persona_atlas.storage.run.commits import read_commit
from persona_atlas.workers.builtin import builtin_engine
from persona_atlas.workers.builtin.loaded_model import Sharing
from persona_atlas.workers.builtin.passes.packed import PackedPass
from persona_atlas.workers.models.model_files import earlier_fingerprint
from rich.console import Console

from broken_passes import seeing_the_first
from command_line import Answered, Refused
from documented import JOB
from tiny_models import CHAT_TEMPLATE, save_tiny_llama

CAPTURE = {
    "hook_points": ["resid_pre", "resid_post", "attn_out"],
    "poolings": ["response_mean", "response_last", "prompt_mean", "prompt_last", "user_mean", "tokens"],
    "token_layers": [1],
}


def job(model: Path, store: Path, **capture: Any) -> dict[str, Any]:
    return JOB | {"model": {"source": str(model)}, "store": {"url": str(store)}, "capture": CAPTURE | capture}


@pytest.fixture(scope="module")
def sound(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("sound") / "run"
    persona_atlas.run(job(tiny_model_directory, store), progress=False)
    return store


def test_every_stored_value_of_a_sound_run_is_within_its_precision(sound: Path):
    found = persona_atlas.verify(sound, recompute=1000, progress=False)
    again = found.recomputation
    assert again is not None
    assert (found.is_sound, again.rollouts, again.deviations, again.left_out) == (True, 14, (), {})
    assert again.worst_relative_error is not None
    # Ten mantissa bits: the values were rounded, so the error is neither zero nor more than half a bit.
    assert 1e-5 < again.worst_relative_error < 2.0**-11 + 1e-5
    assert again.tolerance == pytest.approx(1e-3 + 2.0**-11)


def test_the_seed_chooses_the_rollouts(sound: Path):
    one, again, other = (
        persona_atlas.verify(sound, quick=True, recompute=2, seed=seed, progress=False).recomputation
        for seed in (0, 0, 1)
    )
    assert one is not None
    assert one.rollouts == 2
    assert one == again != other


def test_rollouts_that_saw_their_neighbours_are_named_and_the_status_is_1(
    tiny_model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: Answered
):
    with monkeypatch.context() as broken:
        broken.setattr(PackedPass, "attend", seeing_the_first(PackedPass.attend))
        # The trial at load would find it, and each text would run alone.
        broken.setattr(builtin_engine, "find_sharing", lambda *_: Sharing())
        spec = job(tiny_model_directory, tmp_path / "run", canary={"check": "none"})
        assert persona_atlas.run(spec, progress=False).is_complete
    # Checksums, spans and finite values are as they must be.
    assert answered("verify", tmp_path / "run")["sound"] is True
    found = answered("verify", tmp_path / "run", "--recompute", "1000", status=1)
    assert found["sound"] is False
    assert found["unchecked_units"] == 7
    wrong = found["recomputed"]["deviations"]
    assert 7 <= len(wrong) <= found["recomputed"]["rollouts"] == 14
    assert wrong[0]["relative_error"] == found["recomputed"]["worst_relative_error"] > 1e-2
    assert wrong[0]["unit_id"] in {path.stem for path in (tmp_path / "run/commits").iterdir()}


def test_another_model_is_refused_and_a_moved_one_is_found(
    sound: Path, tiny_model_directory: Path, tmp_path: Path, refused: Refused, answered: Answered
):
    other = save_tiny_llama(tmp_path / "other", max_context=1024)
    error = refused("verify", sound, "--recompute", "1", "--model", other)
    assert (error["code"], error["field"]) == ("other_model", "--model")
    assert refused("verify", sound, "--recompute", "1", "--model", tmp_path / "nowhere")["error"]
    moved = shutil.copytree(tiny_model_directory, tmp_path / "moved")
    assert answered("verify", sound, "--quick", "--recompute", "1", "--model", moved)["recomputed"]["close"] is True
    with pytest.raises(InputError, match="at least 1"):
        persona_atlas.verify(sound, recompute=-1, progress=False)


def test_units_with_damage_are_left_out_and_the_others_are_recomputed(sound: Path, tmp_path: Path, answered: Answered):
    shutil.copytree(sound, tmp_path / "run")
    location = open_location(tmp_path / "run")
    unit_id = "role.pirate.pos.p0.b0"
    location.delete([read_commit(location, unit_id).manifest.blocks[0].path])
    found = answered("verify", tmp_path / "run", "--recompute", "1000", status=1)
    assert found["recomputed"]["close"] is True
    assert found["recomputed"]["rollouts"] < 14


def test_given_conversations_are_recomputed_and_what_has_no_stored_tokens_is_said(
    tiny_model_directory: Path, tmp_path: Path
):
    talks = [
        [
            ("user", "Who?"),
            ("assistant", "I."),
            ("user", "So?"),
            ("assistant", "So. So."),
            ("user", "?"),
            ("assistant", ""),
        ],
        [("user", "Why?"), ("assistant", "Because.")],
    ]
    given = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in given))
    poolings = ["response_mean", "prompt_last", "user_mean"]
    persona_atlas.extract(str(tiny_model_directory), file, tmp_path / "run", poolings=poolings, progress=False)
    again = persona_atlas.verify(tmp_path / "run", recompute=9, progress=False).recomputation
    assert again is not None
    # The empty response has a prompt, which is compared; the words of later users are inside of longer prompts.
    assert (again.rollouts, again.is_close, again.left_out) == (4, True, {"user_mean": 2})


def test_a_run_with_a_template_of_its_own_is_recomputed_with_the_text_that_it_kept(tmp_path: Path):
    template = tmp_path / "template.jinja"
    template.write_text(CHAT_TEMPLATE)
    model = save_tiny_llama(tmp_path / "base", chat_template=None)
    spec = job(model, tmp_path / "run")
    spec["model"]["chat_template"] = str(template)
    persona_atlas.run(spec, progress=False)
    template.unlink()
    again = persona_atlas.verify(tmp_path / "run", recompute=1000, progress=False).recomputation
    assert again is not None
    assert (again.rollouts, again.is_close, again.left_out) == (14, True, {})


def test_the_rollouts_are_read_as_the_store_was_opened(sound: Path, monkeypatch: pytest.MonkeyPatch):
    location = open_location(sound)
    opened: list[Location] = []

    def seen(given: Location) -> Run:
        opened.append(given)
        return run_at(given)

    monkeypatch.setattr(recompute, "run_at", seen)
    found = recompute.verify_and_recompute(location, Progress(Console(quiet=True)), count=1)
    assert found.recomputation is not None
    assert opened == [location]


def test_a_run_whose_model_an_earlier_version_identified_is_recomputed(
    sound: Path, tiny_model_directory: Path, tmp_path: Path
):
    shutil.copytree(sound, tmp_path / "run")
    model = shutil.copytree(tiny_model_directory, tmp_path / "model")
    shutil.copy(model / "model.safetensors", model / "unused.safetensors")
    location = open_location(tmp_path / "run")
    record = run_at(location).record
    facts = replace(record.model, fingerprint=earlier_fingerprint(model))
    body = {name: getattr(record, name) for name in type(record).model_fields if name != "seal"}
    location.write(layout.RUN_RECORD, RunRecord.sealed(**body | {"model": facts}).to_bytes())
    found = persona_atlas.verify(tmp_path / "run", recompute=1, model=str(model), progress=False)
    assert found.recomputation is not None
    assert found.recomputation.is_close
