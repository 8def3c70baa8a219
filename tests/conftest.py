"""Shared parts of the tests: real stores (a folder, an S3 server), a real small model, a tiny random one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from command_line import Answered, Refused, answered_by, refused_by

# Before torch is loaded, which nothing above does; the processes that tests start inherit it. Threads of OpenMP spin
# while they wait for each other, and tests that run beside each other have more threads than there are cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The endpoint of an S3 server: ATLAS_TEST_S3 when set, else moto's, started for the session."""
    given = os.environ.get("ATLAS_TEST_S3")
    if given:
        yield given
        return
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        # Its first start on a machine, beside others, also compiles what it imports.
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, "moto's server ended"
                time.sleep(0.2)
        else:
            pytest.fail("moto's server did not answer")
        yield endpoint
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="session")
def s3_bucket(s3_endpoint: str) -> str:
    """A bucket of its own on the S3 server."""
    import boto3

    name = f"atlas-{uuid.uuid4().hex[:8]}"
    # Made through boto3: s3fs sends a location that Ceph's gateway refuses.
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty place, once in a folder and once on S3 (the endpoint stands in the environment)."""
    if request.param == "folder":
        return str(tmp_path / "run")
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_endpoint"))
    return f"s3://{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def s3_store_url(s3_endpoint: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty place on S3, for tests that take too long to run on both stores."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    return f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def shared_ray(s3_endpoint: str) -> Iterator[None]:
    """One Ray on this machine for all commands of a file, which run in the test's process and join it.

    For tests of what a command does. How Ray is started, and what is left of it, is tested by commands in processes of
    their own. The S3 server comes first, because the workers inherit its credentials from Ray.
    """
    from persona_atlas.cluster.pool.ray_environment import prepare_ray_environment

    prepare_ray_environment()
    import ray

    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def smollm2_directory() -> Path:
    """SmolLM2-135M-Instruct as safetensors, converted once on this machine."""
    from persona_atlas.jobs.specs.spec_parts import ModelSpec
    from persona_atlas.workers.models.model_files import find_model

    from tiny_models import SMOLLM2

    # One process converts, the others wait for it.
    with FileLock(Path(tempfile.gettempdir()) / "persona-atlas-tests-model.lock"):
        return find_model(ModelSpec(source=SMOLLM2), print)


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 3 layers with a byte tokenizer and a chat template; loads in a moment, speaks nonsense."""
    from tiny_models import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def documented_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the examples of docs and docstrings run; see ``documented``."""
    from documented import write_job, write_stores

    folder = tmp_path_factory.mktemp("documented")
    write_stores(folder)
    write_job(folder, Path(__file__).parents[1] / "examples")
    return folder


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], signals_as_before: None) -> Refused:
    """Run a command that must fail."""
    return refused_by(capsys)


@pytest.fixture
def answered(capsys: pytest.CaptureFixture[str], signals_as_before: None) -> Answered:
    """Run a command that must print an object."""
    return answered_by(capsys)
