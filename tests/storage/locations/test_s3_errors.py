"""What a caller may do about an answer of the server decides its error: only what the user can set right is input."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import zarr
from persona_atlas.jobs.errors import AtlasError, InputError, TransientError
from persona_atlas.storage.locations import s3
from persona_atlas.storage.locations.location import Location, open_location

from counted import refusing_server
from fault_proxy import Exchange, Fault, FaultProxy, answer, fault_proxy

pytestmark = pytest.mark.s3

Act = Callable[[Location], object]

ACTS: dict[str, Act] = {
    "read": lambda location: location.read("f/a"),
    "range": lambda location: location.read_range("f/a", 0, 1),
    "size": lambda location: location.size("f/a"),
    "write": lambda location: location.write("f/b", b"y"),
    "create": lambda location: location.create(f"f/{uuid.uuid4().hex}", b"y"),
    "names": lambda location: location.names("f"),
    "sizes": lambda location: location.sizes("f"),
    "delete": lambda location: location.delete(["f/none"]),
    "is empty": lambda location: location.is_empty(),
}


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with fault_proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this botocore tries five times, with waits."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def location(proxy: FaultProxy, s3_bucket: str) -> Location:
    location = open_location(f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}", proxy.endpoint_url)
    location.write("f/a", b"x")
    return location


def expired_for(key: str, code: str = "ExpiredToken") -> Fault:
    """The server takes one access key no more."""

    def fault(exchange: Exchange) -> None:
        if f"Credential={key}/" in exchange.headers["Authorization"]:
            exchange.answer(400, code)

    return fault


def write_credentials(file: Path, key: str) -> None:
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


@pytest.fixture
def credentials_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if os.environ.get("ATLAS_TEST_S3"):
        pytest.skip("takes a server that accepts any key, as moto does")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    write_credentials(file, "FIRST")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    return file


def test_expired_credentials_are_looked_up_again_whatever_is_asked(
    credentials_file: Path, proxy: FaultProxy, location: Location, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(s3, "_RENEW_EVERY_S", 0)
    keys = ["FIRST", *(f"KEY{number}" for number in range(len(ACTS)))]
    for old, new, act, code in zip(
        keys, keys[1:], ACTS.values(), cycle(["ExpiredToken", "InvalidAccessKeyId"]), strict=False
    ):
        proxy.script(expired_for(old, code), times=1000)
        write_credentials(credentials_file, new)
        act(location)
        proxy.clear()


def test_zarr_gets_new_credentials_with_the_next_try(credentials_file: Path, proxy: FaultProxy, location: Location):
    def write(name: str) -> None:
        with location.errors():
            zarr.create_array(location.zarr(read_only=False), name=name, data=np.ones(3))

    write("first")
    proxy.script(expired_for("FIRST"), times=1000)
    write_credentials(credentials_file, "SECOND")
    with pytest.raises(TransientError) as caught:
        write("second")
    assert caught.value.code == "credentials_expired"
    write("second")
    assert location.size("second/zarr.json")


def test_credentials_that_stay_expired_are_a_passing_trouble(proxy: FaultProxy, location: Location):
    proxy.script(answer(400, "ExpiredToken"), times=1000)
    for act in ACTS.values():
        with pytest.raises(TransientError, match="ExpiredToken") as caught:
            act(location)
        assert (caught.value.code, caught.value.field) == ("credentials_expired", "store.url")
        assert "Renew them" in str(caught.value)
    proxy.clear()
    assert location.size("f/a") == 1


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_credentials_that_worked_are_not_wrong_input_when_they_no_longer_do(
    proxy: FaultProxy, location: Location, code: str
):
    proxy.script(answer(403, code), times=1000)
    with pytest.raises(TransientError) as caught:
        location.read("f/a")
    assert caught.value.code == "credentials_expired"
    never_used = open_location(location.url, location.endpoint_url)
    with pytest.raises(InputError) as refused:
        never_used.read("f/a")
    assert refused.value.code == "store_denied"


def test_a_clock_that_is_wrong_is_named_with_both_clocks(proxy: FaultProxy, location: Location):
    server_time = "Mon, 05 Jan 1998 10:11:12 GMT"
    proxy.script(lambda exchange: exchange.answer(403, "RequestTimeTooSkewed", Date=server_time), times=1000)
    for act in ACTS.values():
        with pytest.raises(TransientError) as caught:
            act(location)
        assert caught.value.code == "clock_skew"
        assert f"the server's {server_time}" in caught.value.message
        assert "this machine's clock says" in caught.value.message


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", "store_busy"),
        (503, "ServiceUnavailable", "store_busy"),
        (500, "InternalError", "store_io"),
        (400, "RequestTimeout", "store_io"),
    ],
)
def test_a_busy_or_broken_server_is_tried_again(
    proxy: FaultProxy, location: Location, status: int, code: str, expected: str
):
    proxy.script(answer(status, code), times=1000)
    with pytest.raises(TransientError, match=code) as caught:
        location.write("f/b", b"y")
    assert caught.value.code == expected


@pytest.mark.parametrize(
    ("status", "code", "expected", "field"),
    [
        (403, "AccessDenied", "store_denied", "store.url"),
        (400, "AuthorizationHeaderMalformed", "other_region", "store.url"),
        (400, "KeyTooLongError", "bad_store_url", "store.url"),
        (400, "KMS.NotFoundException", "store_denied", "store.sse"),
    ],
)
def test_what_the_user_can_set_right_is_named(
    proxy: FaultProxy, location: Location, status: int, code: str, expected: str, field: str
):
    proxy.script(answer(status, code), times=1000)
    with pytest.raises(InputError, match=code) as caught:
        location.write("f/b", b"y")
    assert (caught.value.code, caught.value.field) == (expected, field)


def test_credentials_expired_from_the_start_are_named_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with refusing_server("ExpiredToken") as endpoint, pytest.raises(AtlasError) as caught:
        open_location("s3://bucket/x", endpoint).size("a")
    assert (caught.value.code, caught.value.retryable) == ("credentials_expired", True)
