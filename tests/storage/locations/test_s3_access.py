"""Encryption, payment, signatures and checksums of requests, as the server receives them."""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import zarr
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import make_spec
from persona_atlas.jobs.specs.store_spec import S3Access
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.locations.s3_requests import make_filesystem
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.run_store import read_run_record

from fakes import small_plan, small_spec
from fault_proxy import Exchange, FaultProxy, fault_proxy
from stored_runs import record_of

encrypts_without_tls = pytest.mark.skipif(
    bool(os.environ.get("ATLAS_TEST_S3")), reason="takes a server that encrypts over plain HTTP, as moto does"
)


@dataclass
class Seen:
    """What a server received: method, path, headers by lower-case name, and body of each request."""

    proxy: FaultProxy
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def __call__(self, exchange: Exchange) -> None:
        headers = {name.lower(): value for name, value in exchange.headers.items()}
        self.requests.append((exchange.method, exchange.path, headers, exchange.body))

    def of(self, method: str) -> list[tuple[dict[str, str], bytes]]:
        found = [(headers, body) for m, _, headers, body in self.requests if m == method]
        assert found, method
        return found


@pytest.fixture
def seen(s3_endpoint: str) -> Iterator[Seen]:
    with fault_proxy(s3_endpoint) as proxy:
        seen = Seen(proxy)
        proxy.script(seen, times=1000)
        yield seen


def use(location: Location) -> None:
    """Make every kind of request."""
    location.write("f/a", b"x")
    assert location.create("f/b", b"y")
    with location.errors():
        zarr.create_array(location.zarr(read_only=False), name="array", data=np.ones(3))
    assert location.read("f/a") == b"x"
    assert location.read_range("f/a", 0, 1) == b"x"
    assert location.size("f/b") == 1
    assert location.names("f") == ["a", "b"]
    location.delete(["f/a"])
    assert "f/a" not in location.sizes("")


def opened(seen: Seen, bucket: str, access: S3Access | None = None) -> Location:
    return open_location(f"s3://{bucket}/{uuid.uuid4().hex[:12]}", seen.proxy.endpoint_url, access)


@pytest.mark.s3
def test_other_servers_get_content_md5_and_no_checksums_that_they_may_not_know(seen: Seen, s3_bucket: str):
    use(opened(seen, s3_bucket))
    for headers, body in (*seen.of("PUT"), *seen.of("POST")):
        assert headers["content-md5"] == base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        assert "aws-chunked" not in headers.get("content-encoding", "")
        assert "x-amz-trailer" not in headers
    assert not any(name.startswith("x-amz-checksum") for headers, _ in seen.of("PUT") for name in headers)
    assert not any("x-amz-server-side-encryption" in headers for headers, _ in seen.of("PUT"))
    assert not any("x-amz-request-payer" in headers for _, _, headers, _ in seen.requests)
    assert all("authorization" in headers for _, _, headers, _ in seen.requests)


@pytest.mark.s3
def test_the_users_own_choice_of_checksums_is_kept(seen: Seen, s3_bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    opened(seen, s3_bucket).write("f/a", b"x")
    headers, _ = seen.of("PUT")[0]
    assert "x-amz-checksum-crc32" in headers
    assert "content-md5" not in headers


@encrypts_without_tls
@pytest.mark.s3
def test_every_object_is_written_with_the_encryption_that_the_bucket_wants(seen: Seen, s3_bucket: str):
    use(opened(seen, s3_bucket, S3Access(sse="aws:kms", sse_kms_key_id="key-1")))
    for headers, _ in seen.of("PUT"):
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert not any("x-amz-server-side-encryption" in headers for headers, _ in seen.of("GET"))


@pytest.mark.s3
def test_the_requester_pays_for_every_request(seen: Seen, s3_bucket: str):
    use(opened(seen, s3_bucket, S3Access(requester_pays=True)))
    for method, path, headers, _ in seen.requests:
        assert headers.get("x-amz-request-payer") == "requester", (method, path)


@pytest.mark.s3
def test_a_public_bucket_is_read_unsigned_and_without_credentials(
    seen: Seen, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
):
    location = opened(seen, s3_bucket)
    location.write("f/a", b"x")
    client = boto3.client("s3", endpoint_url=location.endpoint_url, region_name="us-east-1")
    client.put_bucket_acl(Bucket=s3_bucket, ACL="public-read")
    client.put_object_acl(Bucket=s3_bucket, Key=f"{location.url.rsplit('/', 1)[1]}/f/a", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    seen.requests.clear()
    public = open_location(location.url, location.endpoint_url, S3Access(anonymous=True))
    assert public.read("f/a") == b"x"
    assert public.names("f") == ["a"]
    assert not any("authorization" in headers for _, _, headers, _ in seen.requests)
    with pytest.raises(InputError, match="--anonymous") as caught:
        open_location(location.url, location.endpoint_url).read("f/a")
    assert caught.value.code == "no_credentials"


@encrypts_without_tls
@pytest.mark.s3
def test_what_is_written_to_a_run_later_is_encrypted_as_the_run_is(seen: Seen, s3_bucket: str):
    location = opened(seen, s3_bucket)
    plan = small_plan(small_spec(store={"url": location.url, "sse": "AES256"}))
    location.write("run.json", record_of(plan).to_bytes())
    seen.requests.clear()
    open_run(location.url, location.endpoint_url).location.write("analysis/x", b"x")
    headers, _ = seen.of("PUT")[0]
    assert headers["x-amz-server-side-encryption"] == "AES256"
    record = read_run_record(location)
    assert record is not None
    assert record.spec.store.sse == "AES256"


def test_a_spec_without_these_fields_is_what_it_was():
    plain = small_spec("s3://bucket/x")
    assert set(plain.model_dump()["store"]) == {"url", "endpoint_url", "mantissa_bits"}
    assert '"sse"' not in plain.model_dump_json()
    given = {"url": "s3://bucket/x", "region": "eu-west-1", "sse": "aws:kms", "sse_kms_key_id": "k", "anonymous": True}
    special = small_spec(store=given)
    assert special.digest == plain.digest
    assert special.model_dump()["store"] == {"endpoint_url": None, "mantissa_bits": 10, **given}
    assert type(special).model_validate_json(special.model_dump_json()) == special


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("store.sse=DES", "store.sse"),
        ("store.sse_kms_key_id=key-1", "store.sse_kms_key_id"),
        ("store.region='eu west'", "store.region"),
        ("store.anonymous=perhaps", "store.anonymous"),
    ],
)
def test_an_access_that_does_not_exist_is_refused(override: str, field: str):
    with pytest.raises(InputError) as caught:
        make_spec({"model": {"source": "m"}, "store": {"url": "s3://bucket/x"}}, [override])
    assert caught.value.field == field


def test_locations_share_what_botocore_has_read_and_a_users_own_descriptions_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def loader() -> Any:
        filesystem = make_filesystem("http://127.0.0.1:9", S3Access(), {}, asynchronous=False)
        return filesystem.session.get_component("data_loader")

    shared = loader()
    assert loader() is shared
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    assert str(tmp_path) in loader().search_paths
    assert str(tmp_path) not in shared.search_paths
