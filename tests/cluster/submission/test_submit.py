"""What is checked and uploaded before a job is submitted; needs no cluster."""

from __future__ import annotations

import io
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import persona_atlas
import pytest
from click.testing import CliRunner
from persona_atlas import __version__
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.submission.cluster_fit import SubmitOptions, refuse_cluster, refuse_what_fits_no_node
from persona_atlas.cluster.submission.follow import refuse_other_versions
from persona_atlas.cluster.submission.ray_cluster import Cluster, ClusterInfo, RayJob
from persona_atlas.cluster.submission.resumed_spec import spec_of_job, spec_of_store
from persona_atlas.cluster.submission.shipping import stage_code, stage_job
from persona_atlas.cluster.submission.submit import resolved, submit_job
from persona_atlas.cluster.submission.submitted_job import SubmittedJob
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.scheduling.job_state import JobState, RayState
from persona_atlas.jobs.sizing.estimate import HEADROOM, Estimate, estimate
from persona_atlas.jobs.specs.spec import JobSpec, make_spec
from persona_atlas.jobs.specs.store_spec import S3Access
from persona_atlas.storage.run.status import RunStatus, read_status, write_status
from rich.console import Console

from fakes import small_plan, small_spec
from stored_runs import small_run

QUIET = Progress(Console(file=io.StringIO()))
PYTHON = ".".join(platform.python_version_tuple()[:2])


def info(python: str = platform.python_version(), gpus: int = 0) -> ClusterInfo:
    return ClusterInfo("2.60.0", python, gpus, is_open=False, cores=8, memory_bytes=16 * 10**9, gpu_bytes=80 * 10**9)


def job(**changes: str) -> SubmittedJob:
    fields = {"job_id": "job-1", "version": __version__, "python": PYTHON} | changes
    return SubmittedJob(spec=small_spec(), **fields)  # type: ignore[arg-type]


def test_the_code_that_is_sent_is_the_whole_package_and_nothing_else(tmp_path: Path):
    package = stage_code(tmp_path)
    assert package.name == "persona_atlas"
    assert {path.name for path in package.iterdir()} == {
        "__init__.py", "py.typed", "jobs", "workers", "storage", "analysis", "cluster",
    }  # fmt: skip
    program = (
        "import persona_atlas, persona_atlas.cluster.cli, persona_atlas.cluster.submission.driver_actor\n"
        "from persona_atlas.jobs.catalog import load_catalog\n"
        "from importlib.resources import files\n"
        "assets = files('persona_atlas.analysis.report') / 'assets'\n"
        "print(persona_atlas.__file__, len(load_catalog().names('role')), (assets / 'app.js').is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(package / "__init__.py"), "275", "True"]
    assert sum(path.stat().st_size for path in package.rglob("*")) < 20 * 2**20


def test_a_job_file_reads_back_as_it_was_written(tmp_path: Path):
    sent = job()
    folder = stage_job(tmp_path, sent)
    assert SubmittedJob.model_validate_json((folder / "job.json").read_bytes()) == sent
    assert [path.name for path in folder.iterdir()] == ["job.json"]


def test_a_resolved_spec_does_not_depend_on_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    spec = resolved(small_spec("runs/x", model={"source": "model", "name": "Nobody"}))
    assert spec.store.url == str(tmp_path / "runs" / "x")
    assert spec.model.source == str(tmp_path / "model")
    assert spec.digest != ""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    assert resolved(small_spec("s3://bucket/x")).store.endpoint_url == "http://minio:9000"


def test_another_python_is_refused_and_both_are_named():
    with pytest.raises(InputError) as caught:
        refuse_cluster(info("3.9.18"), small_spec(), SubmitOptions())
    assert caught.value.code == "other_python"
    assert PYTHON in caught.value.message
    assert "3.9.18" in caught.value.message
    refuse_cluster(info(), small_spec(), SubmitOptions())
    refuse_cluster(info("3.9.18"), small_spec(), SubmitOptions(image="ours"))


def test_a_cluster_with_a_ray_that_is_too_old_is_refused_and_both_are_named():
    with pytest.raises(InputError) as caught:
        refuse_cluster(replace(info(), ray_version="2.9.3"), small_spec(), SubmitOptions())
    assert caught.value.code == "other_ray"
    assert "2.50" in caught.value.message
    assert "2.9.3" in caught.value.message


def test_a_cluster_without_gpus_is_refused_unless_it_scales_up():
    spec = small_spec(placement={"device": "cuda", "replicas": 2})
    with pytest.raises(InputError) as caught:
        refuse_cluster(info(), spec, SubmitOptions())
    assert (caught.value.code, caught.value.field) == ("no_gpu", "placement.device")
    refuse_cluster(info(gpus=1), spec, SubmitOptions())
    refuse_cluster(info(), spec, SubmitOptions(may_scale_up=True))


def figures(replica_gb: int, tokens_gb: int = 0) -> Estimate:
    """An estimate with so much memory for a replica; its other numbers do not matter here."""
    plain = estimate(small_plan(small_spec()))
    weights = int(replica_gb * 1e9 / HEADROOM)
    return replace(plain, weight_bytes=weights, cache_bytes=0, capture_bytes=0, held_token_bytes=tokens_gb * 10**9)


@pytest.mark.parametrize(
    ("placement", "gpus", "needed_gb", "field", "named"),
    [
        ({"threads": 9}, 0, 1, "placement.threads", ("9 cores", "8")),
        ({}, 0, 17, "model.source", ("17.0 GB", "node", "16.0 GB")),
        ({}, 2, 81, "model.source", ("81.0 GB", "GPU", "80.0 GB")),
        ({"device": "cpu"}, 2, 17, "model.source", ("17.0 GB", "node", "16.0 GB")),
    ],
)
def test_a_job_that_fits_no_node_is_refused_with_what_it_needs_and_what_there_is(
    placement: dict[str, Any], gpus: int, needed_gb: int, field: str, named: tuple[str, ...]
):
    with pytest.raises(InputError) as caught:
        refuse_what_fits_no_node(info(gpus=gpus), small_spec(placement=placement), figures(needed_gb))
    assert (caught.value.code, caught.value.field) == ("does_not_fit", field)
    assert all(word in caught.value.message for word in named)


def test_replicas_that_the_nodes_gpus_cannot_hold_are_refused():
    nodes = replace(info(gpus=12), gpus_by_node=(8, 4))

    def refusal(**placement: Any) -> InputError:
        with pytest.raises(InputError) as caught:
            refuse_what_fits_no_node(nodes, small_spec(placement=placement), None)
        return caught.value

    for fitting in ({"tensor_parallel": 8}, {"tensor_parallel": 4, "replicas": 3}, {"tensor_parallel": 4}):
        refuse_what_fits_no_node(nodes, small_spec(placement=fitting), None)
    refuse_what_fits_no_node(nodes, small_spec(placement={"tensor_parallel": 4, "pipeline_parallel": 2}), None)
    refuse_what_fits_no_node(nodes, small_spec(placement={"device": "cpu", "tensor_parallel": 16}), None)
    too_wide = refusal(tensor_parallel=16)
    assert (too_wide.code, too_wide.field) == ("does_not_fit", "placement.tensor_parallel")
    assert "8, 4 GPUs" in too_wide.message
    assert "at most 8" in str(too_wide.hint)
    too_many = refusal(tensor_parallel=8, replicas=2)
    assert (too_many.field, str(too_many.hint)[:18]) == ("placement.replicas", "Ask for at most 1;")
    assert "hold 1 replica," in too_many.message
    assert refusal(tensor_parallel=4, pipeline_parallel=3).field == "placement.pipeline_parallel"


def test_a_replica_of_several_gpus_is_held_against_the_memory_of_each():
    four = replace(figures(200), tensor_parallel=4, engine="vllm", step_bytes=0)
    nodes = replace(info(gpus=4), gpus_by_node=(4,))
    refuse_what_fits_no_node(nodes, small_spec(placement={"tensor_parallel": 4}), four)
    with pytest.raises(InputError, match=r"100\.0 GB on each GPU"):
        refuse_what_fits_no_node(nodes, small_spec(placement={"tensor_parallel": 2}), replace(four, tensor_parallel=2))


def test_kept_tokens_take_memory_of_the_machine_and_not_of_the_gpu():
    refuse_what_fits_no_node(info(gpus=1), small_spec(), figures(80, tokens_gb=10))
    with pytest.raises(InputError, match=r"17\.0 GB"):
        refuse_what_fits_no_node(info(), small_spec(), figures(7, tokens_gb=10))


def test_a_job_that_fits_or_whose_size_is_unknown_is_not_refused():
    refuse_what_fits_no_node(info(), small_spec(placement={"threads": 8}), figures(16))
    refuse_what_fits_no_node(info(gpus=1), small_spec(), figures(80))
    refuse_what_fits_no_node(info(), small_spec(), None)
    unreported = ClusterInfo("2.60.0", "3.11.4", 0, is_open=False, cores=1)
    refuse_what_fits_no_node(unreported, small_spec(), figures(10**6))


@pytest.mark.parametrize(
    ("part", "code", "field"),
    [
        ({"placement": {"engine": "builtin", "tensor_parallel": 2}}, "one_device", "placement.tensor_parallel"),
        ({"conversations": {"source": "talks.jsonl"}}, "not_yet", "conversations"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_the_store_or_cluster_is_read(
    part: dict[str, Any], code: str, field: str
):
    spec = make_spec({"model": {"source": "nobody/nothing"}, "store": {"url": "runs/x"}} | part)
    # Neither model nor cluster exists: reading either would raise another error.
    with pytest.raises(InputError) as caught:
        submit_job(spec, cast(Cluster, None), SubmitOptions(), cast(Progress, None))
    assert (caught.value.code, caught.value.field) == (code, field)


def test_a_job_that_generates_with_weights_it_asks_to_stream_is_refused_before_the_cluster_is_read(
    tiny_model_directory: Path, tmp_path: Path
):
    asked = {"model": {"source": str(tiny_model_directory)}, "store": {"url": str(tmp_path / "run")}}
    with pytest.raises(InputError, match="its workers generate") as caught:
        submit_job(
            make_spec(asked | {"placement": {"weights": "streamed"}}), cast(Cluster, None), SubmitOptions(), QUIET
        )
    assert (caught.value.code, caught.value.field) == ("not_streamed", "placement.weights")


@pytest.mark.parametrize(
    ("changes", "code"), [({"version": "9.9"}, "other_version"), ({"python": "3.9"}, "other_python")]
)
def test_a_cluster_of_another_version_ends_the_job_with_both_named(changes: dict[str, str], code: str):
    with pytest.raises(InputError) as caught:
        refuse_other_versions(job(**changes), __version__)
    assert caught.value.code == code
    assert next(iter(changes.values())) in caught.value.message
    refuse_other_versions(job(), __version__)


def test_a_status_of_another_version_is_read_and_half_a_status_is_ignored(tmp_path: Path):
    location = small_run(str(tmp_path / "run")).location
    status = RunStatus(job_id="job-1", state=JobState.RUNNING, doing="working", updated_at=1.0, started_at=0.0)
    write_status(location, 1, status)
    assert read_status(location, 1) == status
    location.write("status/000001.json", status.model_dump_json().replace("{", '{"hue": "blue",', 1).encode())
    assert read_status(location, 1) == status
    location.write("status/000001.json", b'{"state": "RUNN')
    assert read_status(location, 1) is None
    assert read_status(location, 2) is None


def served_spec(url: str, key: str = "OPENAI_API_KEY") -> JobSpec:
    return small_spec(url, generation={"endpoint": "http://gpu:8000/v1", "api_key_env": key})


def test_a_resumed_spec_brings_no_key_to_a_server_without_the_user_s_word(tmp_path: Path):
    url = str(tmp_path / "run")
    run = small_run(url, served_spec(url))
    job = RayJob("job-1", RayState.SUCCEEDED, "", url, None, served_spec(url).model_dump_json(), __version__, 0.0, None)
    for resumed in (
        lambda receiver: spec_of_store(url, None, S3Access(), receiver)[0],
        lambda receiver: spec_of_job(job, receiver),
    ):
        with pytest.raises(InputError, match="--send-key-to gpu:8000") as caught:
            resumed(None)
        assert caught.value.code == "key_not_confirmed"
        generation = resumed("gpu:8000").generation
        assert generation is not None
        assert generation.api_key_env == "OPENAI_API_KEY"
    # Not from Python either, nor when the spec is submitted as it was read.
    for start in (persona_atlas.run, partial(persona_atlas.run, replicas=2), persona_atlas.plan):
        with pytest.raises(InputError, match="--send-key-to gpu:8000"):
            start(run.record.spec, progress=False)
    with pytest.raises(InputError, match="--send-key-to gpu:8000"):
        submit_job(run.record.spec, cast(Cluster, None), SubmitOptions(), cast(Progress, None))
    done = CliRunner().invoke(cli, ["resume", url, "--address", "http://127.0.0.1:9"])
    assert isinstance(done.exception, InputError)
    assert done.exception.code == "key_not_confirmed"


def test_a_stored_spec_that_names_a_secret_sends_it_nowhere_whatever_the_user_says(tmp_path: Path):
    url = str(tmp_path / "run")
    small_run(url, served_spec(url, "AWS_SECRET_ACCESS_KEY"))
    with pytest.raises(InputError, match="is AWS_SECRET_ACCESS_KEY, and only"):
        spec_of_store(url, None, S3Access(), "gpu:8000")


@pytest.mark.parametrize("text", ["", "{", "{}", "null"])
def test_a_job_without_a_readable_spec_is_refused(text: str):
    job = RayJob("job-1", RayState.SUCCEEDED, "", "runs/x", None, text, __version__, 0.0, None)
    with pytest.raises(InputError, match="the metadata of job job-1 hold no spec"):
        spec_of_job(job, None)
