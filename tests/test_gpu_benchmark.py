"""The benchmark for GPUs, in its CPU form: it must run where torch and transformers are, the first time it is run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"

# What a machine that has torch and transformers may lack. A name that stands for None cannot be imported.
ABSENT = ("zarr", "s3fs", "ray", "numcodecs", "vllm", "google_crc32c", "botocore", "boto3", "gguf", "plotly", "pyarrow")
BLOCKED = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
import runpy
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def test_it_needs_no_store_no_ray_and_no_vllm(tmp_path: Path):
    file = tmp_path / "figures.json"
    options = ["--cpu", "--only", "ceilings,conformance,streaming", "--families", "llama", "--json", str(file)]
    # As from a bare checkout: without the path that tests are given.
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *options], cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    found = json.loads(file.read_text())
    assert found["is_cpu_form"] is True
    assert {name: part["status"] for name, part in found["parts"].items()} == {
        "ceilings": "done",
        "conformance": "done",
        "streaming": "done",
    }
    figures = {line["name"]: line for line in found["figures"]}
    assert figures["copy bandwidth, read and written"]["value"] > 0
    assert 0 < figures["llama float32: error (at most)"]["value"] < 1e-4
    assert figures["llama bfloat16: error (at most)"]["holds"]
    assert "copy bandwidth" in done.stdout.decode()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu")


def test_a_part_that_fails_stops_no_other_and_is_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "figures.json"
    assert script.main(["--cpu", "--only", "conformance,slots", "--families", "no_such", "--json", str(file)]) == 1
    found = json.loads(file.read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == {"conformance": "failed", "slots": "done"}
    assert "no family no_such" in found["parts"]["conformance"]["error"]
    assert "no family no_such" in capsys.readouterr().out


def test_parts_for_which_no_time_is_left_are_skipped_and_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "figures.json"
    assert script.main(["--cpu", "--only", "prefill,decode", "--minutes", "0", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == {
        "prefill": "skipped",
        "decode": "skipped",
    }
    assert "decode: skipped" in capsys.readouterr().out


def test_the_rest_runs_in_a_new_process_when_a_part_has_made_the_device_unusable(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script.make_importable()
    # After an illegal access every call of CUDA fails, which a CPU cannot do.
    monkeypatch.setattr(importlib.import_module("_gpu.bench").Bench, "is_usable", lambda _self: False)
    file = tmp_path / "figures.json"
    options = ["--cpu", "--only", "conformance,slots", "--families", "no_such", "--json", str(file)]
    assert script.main(options) == 1
    found = json.loads(file.read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == {"conformance": "failed", "slots": "done"}
    assert any("slots" in line["name"] for line in found["figures"])
