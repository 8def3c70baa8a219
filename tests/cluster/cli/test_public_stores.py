"""Commands that read a store of a public bucket, without any credentials, and of one whose requester pays."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from persona_atlas import open_run, open_vectors
from persona_atlas.jobs.specs.store_spec import S3Access
from persona_atlas.storage.derived.reductions import write_reduction

from command_line import Answered, Refused
from fakes import small_spec
from fault_proxy import Exchange, FaultProxy, fault_proxy
from planted_vectors import plant
from stored_runs import small_run

pytestmark = pytest.mark.s3

READING = (
    ("show",),
    ("query", "--out", "a.npy"),
    ("verify",),
    ("status",),
    ("export", "out", "--format", "safetensors"),
)


@pytest.fixture(scope="module")
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with fault_proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def url(s3_endpoint: str, s3_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run in a bucket that anyone may list, with objects that anyone may read."""
    root = tmp_path_factory.mktemp("store") / "run"
    counts = {"prompts": 1, "questions": 2}
    few = {"roles": {"names": ["pirate"], **counts}, "default": counts}
    write_reduction(small_run(str(root), small_spec(str(root), personas=few)).location, plant().reduction)
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.put_bucket_acl(Bucket=s3_bucket, ACL="public-read")
    prefix = uuid.uuid4().hex[:12]
    for path in (path for path in root.rglob("*") if path.is_file()):
        key = f"{prefix}/{path.relative_to(root).as_posix()}"
        client.put_object(Bucket=s3_bucket, Key=key, Body=path.read_bytes(), ACL="public-read")
    return f"s3://{s3_bucket}/{prefix}"


@pytest.fixture
def headers(proxy: FaultProxy) -> list[dict[str, str]]:
    """Headers, by lower-case name, of the requests that the server gets from now on."""
    found: list[dict[str, str]] = []

    def note(exchange: Exchange) -> None:
        found.append({name.lower(): value for name, value in exchange.headers.items()})

    proxy.clear()
    proxy.script(note, times=10_000)
    return found


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("no_credentials")
def test_every_reading_command_reads_a_public_store_unsigned(
    answered: Answered, refused: Refused, proxy: FaultProxy, url: str, headers: list[dict[str, str]]
):
    endpoint = ["--endpoint-url", proxy.endpoint_url]
    for command, *arguments in READING:
        answered(command, url, *arguments, *endpoint, "--anonymous")
    assert len(headers) > 20
    assert not [sent for sent in headers if "authorization" in sent]
    error = refused("show", url, *endpoint)
    assert error["code"] == "no_credentials"
    assert "--anonymous" in error["hint"]


@pytest.mark.usefixtures("no_credentials")
def test_a_report_of_a_public_store_needs_a_file_of_ones_own(refused: Refused, proxy: FaultProxy, url: str):
    error = refused("report", url, "--endpoint-url", proxy.endpoint_url, "--anonymous")
    assert (error["code"], error["field"]) == ("read_only", "--out")


@pytest.mark.usefixtures("no_credentials")
def test_python_reads_a_public_store_unsigned(proxy: FaultProxy, url: str, headers: list[dict[str, str]]):
    access = S3Access(anonymous=True)
    run = open_run(url, proxy.endpoint_url, access)
    assert run.activations(persona="pirate", layer=1).shape == (2, 16)
    assert run.rollouts(persona="pirate").num_rows == 2
    vectors = open_vectors(url, proxy.endpoint_url, access)
    assert vectors.reduction is not None
    assert vectors.reduction.reduction_id == "planted"
    assert not [sent for sent in headers if "authorization" in sent]


def test_every_reading_command_agrees_to_pay(
    answered: Answered,
    proxy: FaultProxy,
    url: str,
    headers: list[dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    # The others make requests in the same way.
    for command, *arguments in (READING[0], READING[-1]):
        headers.clear()
        answered(command, url, *arguments, "--endpoint-url", proxy.endpoint_url, "--requester-pays")
        assert headers
        assert {sent.get("x-amz-request-payer") for sent in headers} == {"requester"}, command
