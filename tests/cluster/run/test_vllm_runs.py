"""Runs of vLLM: their stores have the schemas of the built-in engine's, and a run may go on with the other engine."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from persona_atlas import open_run
from persona_atlas.analysis.axis_source import open_axis
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.verification.verify import Verification

from published_axis import save_published_axis
from tiny_families import N_LAYERS
from vllm_families import D_MODEL, save_vllm_family
from whole_run import verified

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

_BY_ENGINE = {"engine", "passes", "versions"}
"""Fields that tell which engine it was; the built-in one is not named."""


def job_of(model: Path, store: Path, engine: str, **more: Any) -> dict[str, Any]:
    counts = {"prompts": 1, "questions": 2}
    return {
        "model": {"source": str(model)},
        "personas": {"roles": {"names": ["pirate", "poet"], **counts}, "default": counts},
        "sampling": {"max_new_tokens": 12},
        "capture": {"poolings": ["response_mean", "prompt_mean", "tokens"], "token_layers": [1]},
        "placement": {"engine": engine, **more},
        "store": {"url": str(store)},
    }


def run(job: dict[str, Any]) -> None:
    """Run a job in a process of its own, since vLLM stays in the process that it was started in."""
    path = Path(job["store"]["url"]).with_suffix(".yaml")
    path.write_text(json.dumps(job))
    program = "import sys, persona_atlas; persona_atlas.run(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vllm_family(tmp_path_factory.mktemp("llama"), "llama")


def schemas(store: Path) -> dict[str, Any]:
    """The schema of everything in a store, by path; ids of objects and lengths of arrays left out."""
    found: dict[str, Any] = {}
    for path in sorted(store.rglob("*")):
        name = re.sub(r"[0-9a-f]{8,}", "ID", path.relative_to(store).as_posix())
        if path.name == "zarr.json":
            metadata = json.loads(path.read_text())
            for length_or_value in ("shape", "consolidated_metadata"):
                metadata.pop(length_or_value, None)
            found[name] = keys_of(metadata)
        elif path.suffix == ".parquet":
            found.setdefault(name.split("/")[0] if "/" in name else name, pq.read_schema(path))
        elif path.suffix == ".json" and name.split("/")[0] in ("run.json", "commits"):
            kind = name.split("/")[0]
            found[kind] = found.get(kind, frozenset()) | keys_of(json.loads(path.read_text()))
    return found


def keys_of(value: Any, at: str = "") -> frozenset[str]:
    """The paths and types of the values in a document, without what only tells the engine."""
    if isinstance(value, dict):
        return frozenset().union(
            *(keys_of(each, f"{at}.{key}") for key, each in value.items() if key not in _BY_ENGINE)
        )
    if isinstance(value, list):
        return frozenset().union(*(keys_of(each, f"{at}[]") for each in value))
    return frozenset({f"{at}: {type(value).__name__}"})


def test_the_store_of_vllm_has_the_schemas_of_the_built_in_engine_s(model: Path, tmp_path: Path):
    for engine in ("builtin", "vllm"):
        run(job_of(model, tmp_path / engine, engine))
        found = verified(open_location(str(tmp_path / engine)))
        assert (found.is_sound, found.is_complete) == (True, True)
    assert schemas(tmp_path / "vllm") == schemas(tmp_path / "builtin")
    named = {
        engine: json.loads((tmp_path / engine / "run.json").read_text()).get("engine") for engine in ("builtin", "vllm")
    }
    assert named == {"builtin": None, "vllm": "vllm"}
    assert open_run(tmp_path / "vllm").record.versions["vllm"] == "0.32.0"


def test_a_run_goes_on_with_another_engine_and_its_records_say_which_made_what(model: Path, tmp_path: Path):
    store = tmp_path / "run"
    run(job_of(model, store, "builtin"))
    commits = sorted((store / "commits").iterdir())
    commits[0].unlink()
    run(job_of(model, store, "vllm"))
    found: Verification = verified(open_location(str(store)))
    assert found.engines == {"builtin": len(commits) - 1, "vllm 0.32.0": 1}


def test_a_capped_job_runs_in_vllm_and_its_edits_are_part_of_its_identity(model: Path, tmp_path: Path):
    axis = save_published_axis(tmp_path / "axis", N_LAYERS, D_MODEL)
    capped = job_of(model, tmp_path / "capped", "vllm")
    capped["capture"]["canary"] = {"check": "every_unit"}
    capped["interventions"] = [{"cap": 9.0, "axis": str(axis), "layers": [1, 2]}]
    run(capped)
    found = verified(open_location(str(tmp_path / "capped")))
    assert (found.is_sound, found.is_complete, found.engines) == (True, True, {"vllm 0.32.0": 3})
    done = open_run(tmp_path / "capped")
    stored = done.record.interventions
    assert stored is not None
    assert [(entry.kind, entry.layers) for entry in stored.entries] == [("cap", (1, 2))]
    tokens = done.activations(layer=1, pooling="tokens").values @ open_axis(str(axis)).unit_D(1)
    assert tokens.min() > 9.0 - 0.05, "rounded as the store does"
