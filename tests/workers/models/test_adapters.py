"""LoRA adapters: merged vectors are those of peft's own forward pass, and an adapter that does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import make_spec
from persona_atlas.jobs.specs.spec_parts import ModelSpec
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.loaded_model import load_model
from persona_atlas.workers.models.model_files import find_model, read_facts
from persona_atlas.workers.models.model_sketch import sketch_model
from safetensors.torch import load_file, save_file

from hub_server import running_hub
from plain_forward import PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of
from tiny_families import N_LAYERS, save_tiny_family

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_family(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONA_ATLAS_CACHE", str(tmp_path / "cache"))


def train(base: Path, directory: Path, **options: Any) -> Path:
    """Save an adapter of random numbers, so large that leaving it out shows."""
    peft = pytest.importorskip("peft")
    model = PlainModel(base).model
    chosen: dict[str, Any] = {"target_modules": "all-linear", "r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(chosen | options)))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", {}),
        ("qwen3", {"use_dora": True}),
        ("gemma2", {"use_rslora": True, "lora_alpha": 2}),
        ("gpt2", {"fan_in_fan_out": True}),
    ],
    ids=["lora", "dora", "rslora", "gpt2"],
)
def test_vectors_are_those_of_peft_s_own_forward_pass(
    bases: Callable[[str], Path], tmp_path: Path, family: str, options: dict[str, Any]
):
    base = bases(family)
    adapter = train(base, tmp_path / "adapter", **options)
    found = find_model(ModelSpec(source=str(base), adapter=str(adapter)), print)
    engine = BuiltinEngine(engine_settings(found, layers=range(N_LAYERS)))
    plain, bare = PlainModel(base), PlainModel(base)
    import peft

    peft.PeftModel.from_pretrained(plain.model, str(adapter)).eval()
    rows = [row for row in generate(engine, requests_of(8)) if row.rollout.has_vector]
    assert rows
    for row in rows:
        ids = conversation_ids(row.rollout)
        expected, without = (pool(model.run(ids)[0], row.rollout) for model in (plain, bare))
        for (_, pooling), got_LD in row.vectors_LD.items():
            assert relative_errors(got_LD, expected[pooling]).max() < 1e-4
            assert relative_errors(got_LD, without[pooling]).max() > 1e-2


def test_an_adapter_as_the_source_stands_for_the_model_that_it_names(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("qwen3")
    adapter = train(base, tmp_path / "adapter")
    both = find_model(ModelSpec(source=str(base), adapter=str(adapter)), print)
    assert find_model(ModelSpec(source=str(adapter)), print) == both
    facts = read_facts(both)
    assert facts.num_parameters == read_facts(base).num_parameters
    assert sketch_model(ModelSpec(source=str(adapter)), print) == (facts, "files")


def test_base_and_adapter_are_both_in_the_identity_of_a_run(bases: Callable[[str], Path], tmp_path: Path):
    base = Path(shutil.copytree(bases("qwen3"), tmp_path / "base"))
    adapter = train(base, tmp_path / "adapter")

    def fingerprint() -> str:
        return read_facts(find_model(ModelSpec(source=str(base), adapter=str(adapter)), print)).fingerprint

    first = fingerprint()
    assert first != read_facts(base).fingerprint
    # Where the base lies is no part of it.
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "maker/base"}))
    assert fingerprint() == first
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 8}))
    assert fingerprint() != first
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    for path in (adapter / "adapter_model.safetensors", base / "model.safetensors"):
        before, tensors = fingerprint(), load_file(path)
        key = min(tensors)
        save_file(tensors | {key: tensors[key] + 1}, path, metadata={"format": "pt"})
        assert fingerprint() != before


def test_a_spec_without_an_adapter_keeps_its_digest():
    spec = {"model": {"source": "maker/model"}, "store": {"url": "runs/x"}}
    plain = make_spec(spec)
    assert "adapter" not in plain.identity()["model"]
    adapted = make_spec(spec | {"model": {"source": "maker/model", "adapter": "maker/lora"}})
    assert adapted.identity()["model"]["adapter"] == "maker/lora"
    assert adapted.digest != plain.digest


def test_an_adapter_s_own_tokenizer_is_used(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("qwen3")
    adapter = train(base, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    found = find_model(ModelSpec(source=str(base), adapter=str(adapter)), print)
    _, tokenizer = load_model(engine_settings(found, layers=(0,)))
    assert tokenizer.chat_template == "{{ messages[-1]['content'] }}"


def test_merged_parameters_have_the_type_of_a_plain_load_and_buffers_stay(bases: Callable[[str], Path], tmp_path: Path):
    base = bases("qwen3")
    found = find_model(ModelSpec(source=str(base), adapter=str(train(base, tmp_path / "adapter"))), print)
    settings = engine_settings(found, layers=(0,), dtype="bfloat16")
    merged, _ = load_model(settings)
    plain = PlainModel(base, torch.bfloat16).model
    assert {n: p.dtype for n, p in merged.named_parameters()} == {n: p.dtype for n, p in plain.named_parameters()}
    assert {n: b.dtype for n, b in merged.named_buffers()} == {n: b.dtype for n, b in plain.named_buffers()}


def test_an_adapter_on_the_hub_is_fetched_without_its_other_files(bases: Callable[[str], Path], tmp_path: Path):
    base, adapter = bases("qwen3"), train(bases("qwen3"), tmp_path / "adapter")
    (adapter / "optimizer.pt").write_bytes(bytes(100))
    (adapter / "checkpoint-1").mkdir()
    shutil.copy(adapter / "adapter_model.safetensors", adapter / "checkpoint-1")
    with running_hub(tmp_path / "hub-cache") as hub:
        hub.repositories["maker/lora"] = adapter
        found = find_model(ModelSpec(source="maker/lora"), print)
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(hub.fetched)
        assert not {"optimizer.pt", "checkpoint-1/adapter_model.safetensors"} & set(hub.fetched)
    assert read_facts(found) == read_facts(find_model(ModelSpec(source=str(base), adapter=str(adapter)), print))


def write_adapter(directory: Path, **config: Any) -> Path:
    directory.mkdir()
    made = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "r": 4} | config
    (directory / "adapter_config.json").write_text(json.dumps(made))
    save_file({"x": torch.zeros(2)}, directory / "adapter_model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "is of type PREFIX_TUNING, and only LORA"),
        ({"peft_type": "IA3"}, "is of type IA3"),
        ({"task_type": "SEQ_CLS"}, "is for SEQ_CLS"),
        ({"layer_replication": [[0, 2], [1, 4]]}, "repeats layers"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_when_a_job_is_planned(
    bases: Callable[[str], Path], tmp_path: Path, config: dict[str, Any], words: str
):
    adapter = write_adapter(tmp_path / "adapter", **config)
    with pytest.raises(InputError) as caught:
        sketch_model(ModelSpec(source=str(bases("qwen3")), adapter=str(adapter)), print)
    assert words in caught.value.message
    assert (caught.value.code, caught.value.field) == ("bad_adapter", "model.adapter")


def test_an_adapter_that_names_no_model_or_one_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="names no model") as caught:
        sketch_model(ModelSpec(source=str(write_adapter(tmp_path / "one"))), print)
    assert "model.adapter" in str(caught.value.hint)
    other = write_adapter(tmp_path / "two", base_model_name_or_path="/no/such/base")
    with pytest.raises(InputError, match="is an adapter of '/no/such/base', which cannot be found"):
        sketch_model(ModelSpec(source=str(other)), print)


def test_an_adapter_without_weights_is_refused(bases: Callable[[str], Path], tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="only pickled weights"):
        find_model(ModelSpec(source=str(bases("qwen3")), adapter=str(adapter)), print)
    weights.write_bytes(b"")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: no weights, only 0 bytes"):
        find_model(ModelSpec(source=str(bases("qwen3")), adapter=str(adapter)), print)
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        find_model(ModelSpec(source=str(bases("qwen3")), adapter=str(bases("qwen3"))), print)


def test_the_library_is_asked_for_when_a_job_is_planned(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    adapter = write_adapter(tmp_path / "adapter")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the library peft") as caught:
        sketch_model(ModelSpec(source=str(bases("qwen3")), adapter=str(adapter)), print)
    assert (caught.value.code, "persona-atlas[peft]" in str(caught.value.hint)) == ("no_package", True)


def test_an_adapter_of_another_model_is_refused_and_not_left_out(bases: Callable[[str], Path], tmp_path: Path):
    adapter = train(bases("qwen3"), tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)

    def load(base: str) -> None:
        found = find_model(ModelSpec(source=str(bases(base)), adapter=str(adapter)), print)
        load_model(engine_settings(found, layers=(0,)))

    with pytest.raises(InputError, match="does not fit the model") as caught:
        load("gpt2")
    assert (caught.value.code, caught.value.field) == ("bad_adapter", "model.adapter")
    # peft itself would leave out what has no counterpart, with a warning.
    save_file({key.replace("layers.0", "layers.9"): value for key, value in tensors.items()}, path)
    with pytest.raises(InputError, match="has no counterpart"):
        load("qwen3")
    save_file({key: value for key, value in tensors.items() if "layers.1" not in key}, path)
    with pytest.raises(InputError, match="has no counterpart"):
        load("qwen3")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"use_tomorrow": True}))
    with pytest.raises(InputError, match="use_tomorrow, which the installed peft does not know"):
        load("qwen3")
