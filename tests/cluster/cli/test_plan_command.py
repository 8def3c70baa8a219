"""``plan`` on the command line: its figures, the source of its facts, what it refuses, and what ``run`` refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sizing.devices import BUILTIN_DEVICES
from persona_atlas.jobs.sizing.known_models import known_models
from persona_atlas.workers.models.model_files import read_facts

from hub_server import HubServer, running_hub
from other_families import ALONE_FAMILIES
from tiny_models import save_tokenizer

LLAMA = Path(__file__).parents[3] / "examples" / "llama-3.3-70b.yaml"
FEW = ("--set", "personas.roles.names=[pirate]", "--set", "personas.traits.names=[]")


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path) -> Iterator[HubServer]:
    """A hub without a repository, and a cache without a model."""
    with running_hub(tmp_path / "hub-cache") as hub:
        yield hub


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False, standalone_mode=False)


def planned(*options: str | Path, spec: Path = LLAMA) -> dict[str, Any]:
    done = invoke("plan", spec, *FEW, *options, "--json")
    return json.loads(done.stdout)


@pytest.fixture
def tiny_spec(tmp_path: Path, tiny_model_directory: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({"model": {"source": str(tiny_model_directory)}, "store": {"url": "s3://b/x"}}))
    return path


def test_the_server_that_generates_and_its_key_stand_in_the_plan(tiny_spec: Path):
    server = ("--set", "generation.endpoint=http://gpu:8000/v1", "--set", "generation.api_key_env=VLLM_API_KEY")
    found = planned(*server, spec=tiny_spec)
    assert (found["endpoint_host"], found["endpoint_key"]) == ("gpu:8000", "VLLM_API_KEY")
    assert "gpu:8000" in invoke("plan", tiny_spec, *FEW, *server).stdout
    assert planned(spec=tiny_spec)["endpoint"] is None
    with pytest.raises(InputError, match=r"generation\.api_key_env"):
        planned(*server, "--set", "generation.api_key_env=AWS_SECRET_ACCESS_KEY", spec=tiny_spec)


@pytest.mark.parametrize(("family", "kinds"), [("mamba", "linear_attention"), ("falcon_h1", "hybrid")])
def test_a_model_with_layers_other_than_attention_is_planned_text_by_text_and_names_them(
    tmp_path: Path, tiny_spec: Path, family: str, kinds: str
):
    save_tokenizer(tmp_path)
    ALONE_FAMILIES[family]().save_pretrained(tmp_path)
    index = {"metadata": {"total_size": 40_000}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = ("--set", f"model.source={tmp_path}", "--set", "sampling.max_new_tokens=16")
    found = planned(*model, spec=tiny_spec)
    assert (found["runs_texts_alone"], found["facts_from"]) == (True, "configuration")
    text = " ".join(invoke("plan", tiny_spec, *FEW, *model).stdout.replace("│", " ").split())
    assert f"do not share passes, because it has layers of type {kinds}: one rollout at a time" in text


def test_a_70b_model_is_planned_from_the_table_and_the_output_says_so():
    found = planned("--device", "H100", "--gpus", "64")
    assert found["facts_from"] == "table"
    assert found["plan_digest"] is None
    assert found["num_parameters"] == 70_553_706_496
    assert found["device_bytes"] * 4 == pytest.approx(found["replica_bytes"], abs=4)
    (price,) = found["prices"]
    assert (price["device"], price["tensor_parallel"], found["currency"]) == ("H100", 4, "USD")
    assert price["gpus"] <= 64
    assert price["money"] == pytest.approx(price["gpu_hours"] * found["devices"]["H100"]["price_per_hour"])
    assert price["days"] == pytest.approx(price["gpu_hours"] / price["gpus"] / 24)
    printed = invoke("plan", LLAMA, *FEW).stdout
    assert "table of known models, not the model's files" in printed.replace("\n", " ")


def test_no_word_of_the_table_of_prices_is_broken_in_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    prices = invoke("plan", LLAMA).stdout.partition("Price")[2]
    for word in ("device", "engine", "hours", "replica", "tokens/s", "devices", "days", "fits with"):
        assert word in prices


def test_devices_that_a_replica_does_not_fit_are_listed():
    found = planned()
    assert {price["device"] for price in found["prices"]} == {"H100", "H200", "A100-80", "L40S"}
    other = {entry["device"]: entry["smallest_tensor_parallel"] for entry in found["does_not_fit"]}
    assert other["A100-40"] == 8
    assert other["L4"] is None


def test_a_spec_whose_model_fits_no_node_is_refused():
    with pytest.raises(InputError) as caught:
        planned("--set", "placement.tensor_parallel=1")
    assert caught.value.code == "does_not_fit"
    with pytest.raises(InputError) as caught:
        planned("--device", "H100", "--gpus", "3")
    assert caught.value.field == "--gpus"


def test_a_table_of_ones_own_is_used(tmp_path: Path):
    table = tmp_path / "mine.yaml"
    table.write_text(BUILTIN_DEVICES.read_text().replace("price_per_hour: 3.00", "price_per_hour: 6.00"))
    before, after = planned("--device", "H100"), planned("--device", "H100", "--devices", table)
    assert after["prices"][0]["money"] == pytest.approx(2 * before["prices"][0]["money"])


def test_a_model_on_this_machine_gives_its_own_facts(tiny_spec: Path):
    found = planned(spec=tiny_spec)
    assert found["facts_from"] == "files"
    assert len(found["plan_digest"]) == 64
    assert {price["device"] for price in found["prices"]} >= {"cpu", "L4"}


def test_a_configuration_and_an_index_are_enough_to_plan_and_not_to_run(
    tmp_path: Path, tiny_model_directory: Path, tiny_spec: Path
):
    sketch = tmp_path / "sketch"
    sketch.mkdir()
    shutil.copy(tiny_model_directory / "config.json", sketch)
    weights = tiny_model_directory / "model.safetensors"
    facts = read_facts(tiny_model_directory)
    index = {"metadata": {"total_size": facts.num_parameters * 4}, "weight_map": {"x": weights.name}}
    (sketch / "model.safetensors.index.json").write_text(json.dumps(index))
    found = planned("--set", f"model.source={sketch}", spec=tiny_spec)
    assert (found["facts_from"], found["plan_digest"]) == ("configuration", None)
    assert found["num_parameters"] == facts.num_parameters
    assert found["n_layers"] == facts.n_layers
    with pytest.raises(InputError) as caught:
        invoke("run", tiny_spec, "--set", f"model.source={sketch}", "--set", f"store.url={tmp_path / 'run'}", "--json")
    assert caught.value.field == "model.source"
    (sketch / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError):
        planned("--set", f"model.source={sketch}", spec=tiny_spec)


def test_a_reachable_hub_gives_facts_without_weights(no_network: HubServer, tiny_model_directory: Path):
    no_network.repositories["meta-llama/Llama-3.3-70B-Instruct"] = tiny_model_directory
    facts = read_facts(tiny_model_directory)
    found = planned("--set", "placement.device=auto", "--set", "placement.tensor_parallel=1")
    assert (found["facts_from"], found["num_parameters"], found["n_layers"]) == (
        "configuration",
        facts.num_parameters,
        3,
    )
    assert found["weight_bytes"] == 2 * facts.num_parameters
    assert found["plan_digest"] is None
    assert not [name for name in no_network.fetched if name.endswith(".safetensors")]


def test_an_unknown_model_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(InputError) as caught:
        planned("--set", "model.source=nobody/knows-this")
    assert (caught.value.code, caught.value.field) == ("no_model", "model.source")
    assert all(name in str(caught.value.hint) for name in known_models())


def test_several_gpus_a_replica_of_the_builtin_engine_are_refused_before_the_model_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def looked_for(*_args: object) -> None:
        pytest.fail("the model was looked for")

    monkeypatch.setattr("persona_atlas.cluster.run.prepare.find_model", looked_for)
    with pytest.raises(InputError) as caught:
        invoke("run", LLAMA, "--set", f"store.url={tmp_path / 'run'}", "--set", "placement.engine=builtin")
    assert (caught.value.code, caught.value.field) == ("one_device", "placement.tensor_parallel")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("most", [2047, 2048])
def test_responses_that_leave_no_room_for_a_prompt_are_refused(tiny_spec: Path, most: int):
    with pytest.raises(InputError) as caught:
        planned("--set", f"sampling.max_new_tokens={most}", spec=tiny_spec)
    assert (caught.value.code, caught.value.field) == ("beyond_context", "sampling.max_new_tokens")
    assert planned("--set", "sampling.max_new_tokens=1024", spec=tiny_spec)["units"]


def test_a_model_that_cannot_be_run_is_not_planned(tiny_spec: Path, tiny_model_directory: Path, tmp_path: Path):
    model = Path(shutil.copytree(tiny_model_directory, tmp_path / "reward"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(InputError, match="no head that predicts the next token") as caught:
        planned("--set", f"model.source={model}", spec=tiny_spec)
    assert (caught.value.code, caught.value.exit_status) == ("unknown_model", 2)
