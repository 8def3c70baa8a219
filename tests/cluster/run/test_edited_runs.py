"""Runs under interventions: resolved once, part of the identity, kept in the store, applied to every rollout."""

from __future__ import annotations

import json
import pickle
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import persona_atlas
import pyarrow.parquet as pq
import pytest
import ray
import torch
from click.testing import CliRunner
from persona_atlas.analysis.axis_source import AxisSource, open_axis
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.run.backend import worker_settings
from persona_atlas.cluster.run.growth import fit_to_run
from persona_atlas.cluster.run.prepare import prepare_job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.submission.cluster_fit import SubmitOptions
from persona_atlas.cluster.submission.ray_cluster import ClusterInfo, RayJob
from persona_atlas.cluster.submission.resumed_spec import spec_of_store
from persona_atlas.cluster.submission.submit import submit_job
from persona_atlas.cluster.submission.submitted_job import SubmittedJob
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import make_spec
from persona_atlas.jobs.specs.store_spec import S3Access
from persona_atlas.jobs.work.edited_requests import under
from persona_atlas.jobs.work.units import UnitAttempt
from persona_atlas.storage.format import layout
from persona_atlas.storage.query.run import Run
from persona_atlas.storage.run.run_store import read_edits
from persona_atlas.storage.sharing.objects import shared_paths
from rich.console import Console

from plain_forward import PlainModel

QUESTIONS = {"prompts": 1, "questions": 2}
QUIET = Progress(Console(quiet=True))


@dataclass(frozen=True)
class World:
    """A tiny model, a reduced run of it, and a run of the same personas under a cap."""

    model: Path
    axis: Path
    run: Run

    def spec(self, store: str, **changes: Any) -> dict[str, Any]:
        entry = {"cap": "p0.25", "axis": str(self.axis), "layers": "1:3"}
        return job(self.model, store) | {"interventions": [entry]} | changes


def job(model: Path, store: str) -> dict[str, Any]:
    return {
        "model": {"source": str(model)},
        "personas": {"roles": {"names": ["pirate", "poet"], **QUESTIONS}, "default": QUESTIONS},
        "sampling": {"max_new_tokens": 6},
        "capture": {"poolings": ["response_mean", "tokens"], "token_layers": "all", "canary": {"check": "every_unit"}},
        "placement": {"device": "cpu"},
        "store": {"url": store, "mantissa_bits": 23},
    }


@pytest.fixture(scope="module")
def world(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("edited")
    persona_atlas.run(job(tiny_model_directory, str(folder / "axis")), progress=False)
    empty = World(tiny_model_directory, folder / "axis", None)  # pyright: ignore[reportArgumentType]
    done = persona_atlas.run(empty.spec(str(folder / "capped")), progress=False)
    assert done.is_complete, done.failures
    return replace(empty, run=done.run)


def tokens_on_axis(run: Run, axis: AxisSource, layer: int) -> np.ndarray:
    found = run.activations(layer=layer, pooling="tokens")
    return found.values.astype(np.float64) @ axis.unit_D(layer)


def test_no_token_is_below_the_floor_and_without_the_cap_most_are(world: World):
    axis = open_axis(world.axis)
    base = persona_atlas.open_run(str(world.axis))
    for layer in (1, 2):
        floor = axis.floor(layer, "p0.25")
        slack = 1e-5 * axis.norm(layer)
        assert tokens_on_axis(world.run, axis, layer).min() >= floor - slack
        assert (tokens_on_axis(base, axis, layer) < floor - slack).mean() > 0.5
    assert tokens_on_axis(world.run, axis, 0).min() < axis.floor(0, "p0.25"), "it is not capped there"


def test_the_run_keeps_the_edits_and_where_they_came_from(world: World):
    axis, record = open_axis(world.axis), world.run.record
    stored = record.interventions
    assert stored is not None
    assert record.layout_version == layout.EDITED_LAYOUT_VERSION
    (entry,) = stored.entries
    assert (entry.kind, entry.layers, entry.source) == ("cap", (1, 2), str(world.axis))
    assert (entry.reduction, entry.model) == (axis.reduction.reduction_id, str(world.model))
    assert entry.numbers == tuple(axis.floor(layer, "p0.25") for layer in (1, 2))
    edits = read_edits(world.run.location, record)
    assert edits is not None
    assert edits.digest == stored.digest
    assert [edit.layer for edit in edits.intervention.edits] == [1, 2]
    np.testing.assert_allclose(edits.intervention.edits[1].vector.unit, axis.unit_D(2), atol=1e-7)
    # Readable without this package.
    table = pq.read_table(Path(world.run.url) / stored.path).to_pylist()
    assert [(line["kind"], line["layer"], line["number"]) for line in table] == [
        ("cap", layer, axis.floor(layer, "p0.25")) for layer in (1, 2)
    ]
    for share in ("vectors", "all"):
        assert stored.path in shared_paths(world.run.location, share)


def test_what_was_done_is_kept_by_rollout_and_shown(world: World):
    table = world.run.rollouts()
    for line in table.to_pylist():
        assert line["edit_layers"] == [1, 2]
        assert line["edit_tokens"] == [line["num_prompt_tokens"] + line["num_content_tokens"]] * 2
        of_layers = zip(line["edit_changed"], line["edit_tokens"], strict=True)
        assert all(0 < changed <= tokens for changed, tokens in of_layers)
    index = world.run.index.to_pylist()
    for line, told in zip(table.to_pylist(), index, strict=True):
        share = sum(line["edit_changed"]) / sum(line["edit_tokens"])
        pairs = zip(line["edit_changed"], line["edit_correction"], strict=True)
        correction = sum(changed * length for changed, length in pairs) / sum(line["edit_changed"])
        assert (told["edited_share"], told["mean_correction"]) == pytest.approx((share, correction), rel=1e-5)
    shown = CliRunner().invoke(cli, ["show", world.run.url, "--json"])
    contents = json.loads(shown.output)
    assert contents["edited"] == world.run.edited
    assert contents["interventions"]["entries"][0]["asked"]["cap"] == "p0.25"
    assert "Made under 1 intervention: cap p0.25" in (Path(world.run.url) / "report.html").read_text()
    assert "cap p0.25 on the axis" in CliRunner().invoke(cli, ["show", world.run.url], env={"COLUMNS": "200"}).output


def test_verify_finds_a_sound_run_recomputes_it_under_the_edits_and_notices_a_lost_table(world: World, tmp_path: Path):
    sound = persona_atlas.verify(world.run.url, recompute=3, progress=False)
    assert sound.is_sound
    assert sound.recomputation is not None
    assert sound.recomputation.rollouts == 3
    shutil.copytree(world.run.url, tmp_path / "copy")
    stored = world.run.record.interventions
    assert stored is not None
    path = tmp_path / "copy" / stored.path
    assert path.stat().st_size == stored.num_bytes
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    damaged = persona_atlas.verify(tmp_path / "copy", progress=False)
    assert [problem.path for problem in damaged.problems] == [stored.path]
    path.unlink()
    lost = persona_atlas.verify(tmp_path / "copy", progress=False)
    assert [problem.code for problem in lost.problems] == ["bad_object"]
    assert not lost.is_sound


@pytest.mark.parametrize(
    "changes",
    [
        {"interventions": None},
        {"interventions": [{"cap": "p0.5", "layers": "1:3"}]},
        {"interventions": [{"cap": "p0.25", "layers": "1:2"}]},
        {"interventions": [{"cap": "p0.25", "layers": "1:3", "positions": "response"}]},
        {"interventions": [{"steer": 0.3}]},
    ],
    ids=["none", "floor", "layers", "positions", "kind"],
)
@pytest.mark.parametrize("grow", [False, True])
def test_other_edits_are_another_run(world: World, changes: dict[str, Any], grow: bool):
    entries = changes["interventions"]
    named = None if entries is None else [entry | {"axis": str(world.axis)} for entry in entries]
    with pytest.raises(InputError) as caught:
        persona_atlas.run(world.spec(world.run.url, interventions=named), grow=grow, progress=False)
    assert caught.value.field == "interventions"
    assert caught.value.code == ("cannot_grow" if grow else "other_run")


def test_a_run_begun_without_edits_takes_none_later(world: World):
    with pytest.raises(InputError, match="without interventions") as caught:
        persona_atlas.run(world.spec(str(world.axis)), progress=False)
    assert (caught.value.field, caught.value.code) == ("interventions", "other_run")


def test_the_same_edits_written_otherwise_are_the_same_run_also_without_their_axis(world: World, tmp_path: Path):
    shutil.copytree(world.axis, tmp_path / "axis")
    entry = {"cap": "p0.25", "axis": str(tmp_path / "axis"), "layers": [1, 2]}
    spec = make_spec(world.spec(world.run.url, interventions=[entry]))
    assert prepare_job(spec, QUIET).num_missing == 0
    shutil.copytree(world.run.url, tmp_path / "run")
    moved = make_spec(world.spec(str(tmp_path / "run")))
    hidden = world.axis.rename(world.axis.with_name("hidden"))
    try:
        again = prepare_job(moved, QUIET)
        with pytest.raises(InputError, match="no such file") as caught:
            prepare_job(make_spec(world.spec(str(tmp_path / "new"))), QUIET)
        for record in (tmp_path / "axis" / "analysis").glob("*.json"):
            record.write_bytes(b"{}")
        (tmp_path / "axis").rename(world.axis)
        damaged = prepare_job(moved, QUIET)
        world.axis.rename(tmp_path / "axis")
    finally:
        hidden.rename(world.axis)
    assert again.num_missing == damaged.num_missing == 0
    assert again.plan.edits == damaged.plan.edits == read_edits(world.run.location, world.run.record)
    assert caught.value.field == "interventions.0.axis"


def test_a_run_under_edits_grows_and_stays_readable(world: World, tmp_path: Path):
    shutil.copytree(world.run.url, tmp_path / "run")
    personas = {"roles": {"names": ["pirate", "poet", "teacher"], **QUESTIONS}, "default": QUESTIONS}
    done = persona_atlas.run(world.spec(str(tmp_path / "run"), personas=personas), grow=True, progress=False)
    assert (done.is_complete, done.worked) == (True, 1)
    assert done.run.rollouts(persona="teacher")["edit_layers"].to_pylist() == [[1, 2]] * 2
    job = prepare_job(make_spec(world.spec(str(tmp_path / "run"), personas=personas)), QUIET)
    assert job.record is not None
    assert fit_to_run(job.plan, job.record, job.location, grow=True)[1] is None


def test_vectors_are_sent_with_the_worker_and_not_with_its_units(world: World):
    job = prepare_job(make_spec(world.spec(world.run.url)), QUIET)
    edits = job.plan.edits
    assert edits is not None
    settings = worker_settings(job, Placement(1, "cpu", 1, 0), "sentinel")
    assert settings.intervention == edits.intervention
    unit = job.plan.units[0]
    attempt = UnitAttempt(unit, job.plan.requests(unit), 1, 0)
    assert edits.intervention.edits[0].vector.data not in pickle.dumps(attempt)
    requests = list(under(settings.intervention, attempt).first_requests())
    assert all(request.intervention is settings.intervention for request in requests)
    assert under(None, attempt) is attempt


def released_hook(vector_D: torch.Tensor, cap: float) -> Any:
    unit_D = vector_D / vector_D.norm()

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        resid = output if isinstance(output, torch.Tensor) else output[0]
        edited = resid - (resid @ unit_D - cap).clamp_min(0)[..., None] * unit_D
        return edited if isinstance(output, torch.Tensor) else (edited, *output[1:])

    return hook


def test_given_texts_are_read_under_a_released_setting_as_by_the_released_formula(world: World, tmp_path: Path):
    """A file of the released form for a made-up model, against a plain forward pass with that formula in hooks."""
    torch.manual_seed(5)
    vectors = {f"v{layer}": {"vector": torch.randn(32), "layer": layer} for layer in (0, 1)}
    caps = [{"vector": "v0", "cap": -0.05}, {"vector": "v1", "cap": 0.01}]
    torch.save(
        {"vectors": vectors, "experiments": [{"id": "layers_0:2-p0.25", "interventions": caps}]}, tmp_path / "c.pt"
    )
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A pirate, what else?"}]
    entry = f"[{{axis: {tmp_path / 'c.pt'}, experiment: 'layers_0:2-p0.25'}}]"
    done = persona_atlas.extract(
        world.model, talk, tmp_path / "talk", overrides=[f"interventions={entry}"], progress=False
    )
    assert done.is_complete, done.failures
    (line,) = done.run.rollouts().to_pylist()
    ids = [*line["prompt_token_ids"], *line["response_token_ids"]]
    start, stop = len(line["prompt_token_ids"]), len(line["prompt_token_ids"]) + line["num_content_tokens"]
    plain = PlainModel(world.model)
    for layer in (0, 1):
        plain.layers[layer].register_forward_hook(released_hook(vectors[f"v{layer}"]["vector"], caps[layer]["cap"]))
    expected_LTD = plain.outputs(ids)
    got_LD = done.run.activations(layer="all").values[0]
    np.testing.assert_allclose(got_LD, expected_LTD[:, start:stop].mean(axis=1), atol=2e-3 * np.abs(got_LD).max())
    assert line["edit_changed"][0] > 0


class _Collecting:
    """A cluster that keeps the job that is sent to it."""

    def __init__(self) -> None:
        self.sent: SubmittedJob | None = None

    def info(self) -> ClusterInfo:
        return ClusterInfo(ray.__version__, platform.python_version(), 0, is_open=False, cores=4, memory_bytes=2**34)

    def jobs(self) -> list[RayJob]:
        return []

    def submit(self, *_: object, working_directory: Path, **__: object) -> None:
        self.sent = SubmittedJob.model_validate_json((working_directory / "job.json").read_bytes())


def test_a_job_for_a_cluster_brings_its_edits_and_a_resumed_one_those_of_the_store(world: World, tmp_path: Path):
    recorded = read_edits(world.run.location, world.run.record)
    cluster: Any = _Collecting()
    submit_job(make_spec(world.spec(str(tmp_path / "new"))), cluster, SubmitOptions(), QUIET)
    assert cluster.sent.run_edits == recorded
    spec, _, edits = spec_of_store(world.run.url, None, S3Access(), None)
    assert edits == recorded
    hidden = world.axis.rename(world.axis.with_name("hidden"))
    try:
        submit_job(spec, cluster, SubmitOptions(), QUIET, edits=edits)
        again = prepare_job(spec, QUIET, edits=cluster.sent.run_edits)
    finally:
        hidden.rename(world.axis)
    assert again.num_missing == 0
    plain = SubmittedJob(job_id="job-1", spec=make_spec(job(world.model, "x")), version="1", python="3.11")
    assert plain.run_edits is None
