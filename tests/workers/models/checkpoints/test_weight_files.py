"""Which files are a checkpoint's weights: the same in a directory and on the hub, whatever lies beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from persona_atlas.cluster.run.prepare import plan_job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import make_spec
from persona_atlas.jobs.specs.spec_parts import ModelSpec
from persona_atlas.storage.format.records import RunRecord
from persona_atlas.workers.builtin.loaded_model import load_model
from persona_atlas.workers.models.model_files import earlier_fingerprint, find_model, read_facts
from persona_atlas.workers.models.model_sketch import sketch_model
from rich.console import Console
from safetensors.torch import load_file, save_file

from hub_server import HubServer, running_hub
from requests_of import engine_settings

INDEX = "model.safetensors.index.json"


def say_nothing(_line: str) -> None:
    """Take a line of progress."""


@pytest.fixture
def sharded(tiny_model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkpoint in two parts with an index."""
    monkeypatch.setenv("PERSONA_ATLAS_CACHE", str(tmp_path / "own-cache"))
    directory = Path(shutil.copytree(tiny_model_directory, tmp_path / "model"))
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[10:]}
    for name, held in parts.items():
        save_file({key: tensors[key] for key in held}, directory / name, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {key: name for name, held in parts.items() for key in held}
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return directory


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub-cache") as server:
        yield server


def as_plain(directory: Path) -> dict[str, torch.Tensor]:
    return {
        key: value for path in sorted(directory.glob("model-*.safetensors")) for key, value in load_file(path).items()
    }


def one_file(directory: Path) -> None:
    # Other numbers, so that a test sees which were loaded.
    save_file({key: value + 1 for key, value in as_plain(directory).items()}, directory / "model.safetensors")


def consolidated(directory: Path) -> None:
    save_file(as_plain(directory), directory / "consolidated.safetensors")
    save_file(as_plain(directory), directory / "consolidated.00.safetensors")


def another_precision(directory: Path) -> None:
    save_file({key: value.half() for key, value in as_plain(directory).items()}, directory / "model.fp16.safetensors")


def pickled(directory: Path) -> None:
    torch.save(as_plain(directory), directory / "pytorch_model.bin")
    (directory / "pytorch_model.bin.index.json").write_text("{}")


def subfolders(directory: Path) -> None:
    for name in ("original", "metal", "onnx"):
        (directory / name).mkdir()
        save_file(as_plain(directory), directory / name / "model.safetensors")
        (directory / name / "config.json").write_text("{}")


def an_adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nobody/here"}')
    save_file({"base_model.x": torch.zeros(4)}, directory / "adapter_model.safetensors")


def gguf(directory: Path) -> None:
    (directory / "model.Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(1000))


BESIDE = [one_file, consolidated, another_precision, pickled, subfolders, an_adapter, gguf]


@pytest.mark.parametrize("add", BESIDE, ids=lambda add: add.__name__)
def test_what_lies_beside_the_weights_changes_nothing(sharded: Path, add: Callable[[Path], None]):
    before, tensors = read_facts(sharded), as_plain(sharded)
    add(sharded)
    assert read_facts(sharded) == before
    assert before.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    found = find_model(ModelSpec(source=str(sharded)), say_nothing)
    assert read_facts(found) == before
    model, _ = load_model(engine_settings(found, layers=(0,)))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("add", BESIDE, ids=lambda add: add.__name__)
def test_what_lies_beside_the_weights_is_not_fetched(sharded: Path, hub: HubServer, add: Callable[[Path], None]):
    wanted = {path.name for path in sharded.iterdir()}
    facts = read_facts(sharded)
    add(sharded)
    hub.repositories["maker/model"] = sharded
    sketched, facts_from = sketch_model(ModelSpec(source="maker/model"), say_nothing)
    assert (sketched.num_parameters, sketched.dtype, facts_from) == (facts.num_parameters, "float32", "configuration")
    assert not [name for name in hub.fetched if name.endswith((".safetensors", ".bin", ".gguf"))]
    found = find_model(ModelSpec(source="maker/model"), say_nothing)
    small = {"adapter_config.json", "pytorch_model.bin.index.json"}
    assert wanted <= set(hub.fetched) <= wanted | small
    assert read_facts(found) == facts


def test_a_whole_model_in_the_cache_needs_no_hub(sharded: Path, hub: HubServer):
    hub.repositories["maker/model"] = sharded
    found = find_model(ModelSpec(source="maker/model"), say_nothing)
    hub.repositories.clear()
    assert find_model(ModelSpec(source="maker/model"), say_nothing) == found
    assert sketch_model(ModelSpec(source="maker/model"), say_nothing) == (read_facts(sharded), "files")


def test_a_model_that_is_not_on_the_hub_is_named(hub: HubServer):
    with pytest.raises(InputError, match=r"nobody/here.*Repository Not Found") as caught:
        find_model(ModelSpec(source="nobody/here"), say_nothing)
    assert (caught.value.code, caught.value.field) == ("no_model", "model.source")
    assert hub.fetched == []


def test_a_repository_that_holds_a_single_file_only_is_read_by_it(sharded: Path):
    one_file(sharded)
    for part in sharded.glob("model-*.safetensors"):
        part.unlink()
    expected = load_file(sharded / "model.safetensors")
    found = find_model(ModelSpec(source=str(sharded)), say_nothing)
    model, _ = load_model(engine_settings(found, layers=(0,)))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())


def test_the_only_precision_that_is_there_is_the_model(sharded: Path):
    another_precision(sharded)
    for path in [*sharded.glob("model-*.safetensors"), sharded / INDEX]:
        path.unlink()
    found = find_model(ModelSpec(source=str(sharded)), say_nothing)
    assert read_facts(found).dtype == "float16"
    model, _ = load_model(engine_settings(found, layers=(0,)))
    expected = load_file(sharded / "model.fp16.safetensors")
    assert all(torch.equal(model.state_dict()[key], value.float()) for key, value in expected.items())


PART = "model-00002-of-00002.safetensors"


def missing(directory: Path) -> None:
    (directory / PART).unlink()


def not_fetched_to_its_end(directory: Path) -> None:
    (directory / PART).rename(directory / f"{PART}.incomplete")


def a_pointer(directory: Path) -> None:
    (directory / PART).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5\n")


def empty(directory: Path) -> None:
    (directory / PART).write_bytes(b"")


def cut_short(directory: Path) -> None:
    (directory / PART).write_bytes((directory / PART).read_bytes()[:-4])


def not_json(directory: Path) -> None:
    (directory / INDEX).write_text("{")


def no_index(directory: Path) -> None:
    (directory / INDEX).unlink()


def out_of_the_directory(directory: Path) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {"x": "../other/model.safetensors"}}))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (missing, f"{PART}: missing, though {INDEX} names it"),
    (not_fetched_to_its_end, f"{PART}.incomplete is a download that did not end"),
    (a_pointer, f"{PART}: a git-lfs pointer and not the weights"),
    (empty, f"{PART}: no weights, only 0 bytes"),
    (cut_short, f"{PART}: cut short"),
    (not_json, f"{INDEX}: not JSON"),
    (no_index, f"{INDEX}: missing, so it cannot be told which of model-00001"),
    (out_of_the_directory, f"{INDEX}: names ../other/model.safetensors"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=lambda part: getattr(part, "__name__", ""))
def test_damaged_weights_are_refused_by_file_when_a_job_is_planned(
    sharded: Path, damage: Callable[[Path], None], words: str
):
    damage(sharded)
    for read in (read_facts, lambda path: sketch_model(ModelSpec(source=str(path)), say_nothing)):
        with pytest.raises(InputError) as caught:
            read(sharded)
        assert words in caught.value.message
        assert (caught.value.code, caught.value.field) == ("no_model", "model.source")
        assert caught.value.hint


def test_everything_that_is_wrong_is_told_at_once(sharded: Path):
    (sharded / "tokenizer.json").unlink()
    (sharded / "config.json").write_text("{")
    no_index(sharded)
    with pytest.raises(InputError) as caught:
        read_facts(sharded)
    assert all(f"{name}: " in caught.value.message for name in ("tokenizer.json", "config.json", INDEX))


def test_a_run_that_counted_weights_beside_the_model_s_is_resumed(sharded: Path, tmp_path: Path):
    before = read_facts(sharded).fingerprint
    assert earlier_fingerprint(sharded) == before
    consolidated(sharded)
    spec = make_spec(
        {
            "model": {"source": str(sharded)},
            "personas": {"default": {"prompts": 1, "questions": 1}},
            "store": {"url": str(tmp_path / "run")},
        }
    )
    plan, _ = plan_job(spec, Progress(Console(quiet=True)))
    assert (plan.facts.fingerprint, earlier_fingerprint(sharded) == before) == (before, False)
    older = replace(plan, facts=replace(plan.facts, fingerprint=earlier_fingerprint(sharded)))
    record = RunRecord.of(older, units_sha256="", rendering={}, versions={}, created_at="2026-01-01T00:00:00Z")
    resumed, _ = plan_job(spec, Progress(Console(quiet=True)), record=record)
    assert resumed.digest == older.digest
    other = RunRecord.of(
        replace(plan, facts=replace(plan.facts, fingerprint="f" * 64)),
        units_sha256="",
        rendering={},
        versions={},
        created_at="2026-01-01T00:00:00Z",
    )
    assert plan_job(spec, Progress(Console(quiet=True)), record=other)[0].digest == plan.digest
