"""What is rendered for Kubernetes: it has the published form, wants a token, shows nothing, and holds no secret."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import jsonschema
import persona_atlas
import pytest
import yaml
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import load_spec

from kuberay_rules import DOCUMENTS
from rendered import (
    EXAMPLES,
    LLAMA,
    ROOT,
    SECRETS,
    cluster_spec,
    containers,
    documents,
    parse_own_command,
    render,
    render_plainly,
    templates,
    worker,
)

on_every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
on_kubernetes = pytest.mark.parametrize("kind", ["rayjob", "raycluster"])


# Made once: ``jsonschema.validate`` would check the rules themselves with every document.
VALIDATORS = {kind: jsonschema.Draft202012Validator(rules) for kind, rules in DOCUMENTS.items()}
OVER_NODES = ("--set", "placement.pipeline_parallel=4")
"""What spreads a replica of the example, with four GPUs a stage, over two machines of eight."""

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
        VALIDATORS[document["kind"]].validate(document)
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
            VALIDATORS["RayJob"].validate(changed)


def test_the_rules_are_sound_themselves():
    for rules in DOCUMENTS.values():
        jsonschema.Draft202012Validator.check_schema(rules)


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
    if kind in ("rayjob", "raycluster"):
        whole = json.dumps(list(yaml.safe_load_all(text)))
        assert not re.findall(r'"name": "\w*(?:KEY|SECRET|TOKEN)\w*", "value"', whole)


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


def test_a_replica_over_two_nodes_gets_two_machines_with_its_part_of_the_gpus_each():
    (group,) = cluster_spec(documents("rayjob", LLAMA, *OVER_NODES, "--gpus-max", "32"))["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (group["groupName"], group["replicas"], limits["nvidia.com/gpu"]) == ("gpu-x8", 4, "8")
    # The stages of several replicas may share a machine, those of one may not.
    for stages, gpus, machines in ((4, 16, 2), (5, 20, 5), (5, 40, 5)):
        options = ("--set", f"placement.pipeline_parallel={stages}", "--gpus-max", str(gpus))
        text = render("ray-vm", LLAMA, *options, "--gpu-type", "H100", "--service-account", "atlas")
        assert yaml.safe_load(text)["max_workers"] == machines


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
    spec = cluster_spec(
        documents(kind, LLAMA, "--gpus-max", "64", "--gpus-min", "16", "--set", "placement.replicas=null")
    )
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


@pytest.mark.parametrize(
    ("example", "options", "settings"),
    [
        (LLAMA, (), ()),
        (
            LLAMA,
            ("--gpus-min", "0", "--gpus-max", "64", "--set", "placement.replicas=null"),
            ("placement.replicas=16",),
        ),
        (LLAMA, ("--gpus-min", "0", "--gpus-max", "64", "--set", "placement.replicas=8"), ()),
        (ROOT / "examples" / "demo.yaml", ("--gpus-max", "3"), ()),
        (
            ROOT / "examples" / "demo.yaml",
            ("--gpus-min", "1", "--gpus-max", "3"),
            ("placement.replicas=3", "placement.device=cuda"),
        ),
    ],
)
def test_the_entrypoint_is_a_command_of_ours_and_asks_for_what_an_autoscaler_is_to_bring(
    example: Path, options: tuple[str, ...], settings: tuple[str, ...]
):
    command = documents("rayjob", example, *options)[-1]["spec"]["entrypoint"]
    found = parse_own_command(command)
    assert (found["address"], found["overrides"]) == ("auto", settings)
    # The operator puts it into a shell's line as it is.
    assert shlex.join(shlex.split(command)) == command


@on_kubernetes
def test_rays_command_line_takes_the_start_parameters(kind: str):
    from ray.scripts.scripts import start

    spec = cluster_spec(documents(kind))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        start.make_context("start", [f"--{key}={value}" for key, value in group["rayStartParams"].items()])


@pytest.mark.parametrize(
    ("kind", "options", "field", "told"),
    [
        ("rayjob", ("--set", "store.url=runs/here"), "store.url", "s3://"),
        ("rayjob", ("--set", "personas.catalog=./mine"), "personas.catalog", "image"),
        ("rayjob", ("--set", "interventions=[{cap: 1, axis: runs/demo}]"), "interventions.0.axis", "image"),
        ("rayjob", ("--set", "model.source=./model"), "model.source", "image"),
        ("rayjob", ("--name", "Llama_70B"), "--name", "a-z"),
        ("rayjob", ("--name", "l" * 48), "--name", "47"),
        ("rayjob", ("--gpus-max", "6"), "--gpus-max", "multiple of 4"),
        ("rayjob", ("--gpus-min", "2", "--gpus-max", "8"), "--gpus-min", "multiple of 4"),
        ("rayjob", ("--gpus-min", "16", "--gpus-max", "8"), "--gpus-min", "above"),
        ("rayjob", ("--gpu-type", "H10"), "--gpu-type", "H100"),
        ("rayjob", ("--gpu-type", "L4"), "placement.tensor_parallel", "smaller model"),
        ("rayjob", ("--gpus-max", "64"), "--gpus-max", "placement.replicas=16"),
        ("rayjob", ("--set", "placement.tensor_parallel=1"), "placement.tensor_parallel", "4 on H100"),
        ("rayjob", ("--set", "placement.engine=builtin"), "placement.tensor_parallel", "placement.engine=vllm"),
        ("rayjob", ("--set", "placement.tensor_parallel=3"), "placement.tensor_parallel", "Sizes that do: 1, 2, 4, 8"),
        ("rayjob", (*OVER_NODES, "--gpus-min", "0", "--gpus-max", "32"), "--gpus-min", "--gpus-min 16"),
        ("rayjob", ("--set", "capture.hook_points=[mlp_out]"), "capture.hook_points", "resid_post only"),
        ("rayjob", ("--set", "sampling.max_new_tokens=131072"), "sampling.max_new_tokens", "context"),
        ("rayjob", ("--set", "model.adapter=./lora"), "model.adapter", "image"),
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
    package = Path(persona_atlas.__file__).parent
    shutil.copytree(
        package / "jobs" / "catalog", tmp_path / "mine", ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    return os.path.relpath(tmp_path / "mine")


def test_a_spec_is_asked_for_where_one_is_needed():
    with pytest.raises(InputError) as caught:
        render_plainly("--kind", "rayjob")
    assert caught.value.field == "--spec"


def test_as_json_it_is_one_object():
    found = json.loads(render("rayjob", LLAMA, "--json"))
    assert [document["kind"] for document in found["documents"]] == ["ConfigMap", "NetworkPolicy", "RayJob"]
    assert list(yaml.safe_load_all(found["text"])) == found["documents"]
