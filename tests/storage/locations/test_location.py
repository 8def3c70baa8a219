"""The contract of a location, held to by a folder and by S3, and what their troubles become."""

from __future__ import annotations

import socket
import threading
import uuid
from pathlib import Path

import boto3
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import AtlasError, InputError, TransientError
from persona_atlas.storage.locations.location import Location, open_location

from counted import counting_server, refusing_server


@pytest.fixture
def location(store_url: str) -> Location:
    return open_location(store_url)


def test_a_new_place_is_empty_and_holds_nothing(location: Location):
    assert location.is_empty()
    assert location.read("a") is None
    assert location.read("folder/a") is None
    assert location.names("folder") == []


def test_what_was_written_is_read_whole_and_may_be_written_over(location: Location):
    location.write("folder/deep/a", b"one")
    assert location.read("folder/deep/a") == b"one"
    location.write("folder/deep/a", b"")
    assert location.read("folder/deep/a") == b""
    large = bytes(range(256)) * 40_000
    location.write("folder/deep/a", large)
    assert location.read("folder/deep/a") == large
    assert not location.is_empty()


def test_another_location_on_the_same_url_sees_what_is_written(location: Location):
    other = open_location(location.url)
    assert other.names("folder") == []
    location.write("folder/a", b"1")
    assert other.names("folder") == ["a"]
    location.write("folder/b", b"2")
    assert other.names("folder") == ["a", "b"]
    assert other.read("folder/b") == b"2"


def test_only_the_objects_directly_in_a_folder_are_named_and_sorted(location: Location):
    for path in ("f/b", "f/a.json", "f/sub/c", "f2/d", "top"):
        location.write(path, b"x")
    assert location.names("f") == ["a.json", "b"]
    assert location.names("f/sub") == ["c"]


def test_an_object_is_created_once(location: Location):
    assert location.create("leases/1", b"mine")
    assert not location.create("leases/1", b"yours")
    assert location.read("leases/1") == b"mine"
    location.write("leases/1", b"renewed")
    assert not location.create("leases/1", b"yours")
    assert location.read("leases/1") == b"renewed"


def test_of_eight_that_create_at_once_one_wins_and_its_bytes_stay(location: Location):
    others = [open_location(location.url) for _ in range(8)]
    for attempt in range(5):
        start = threading.Barrier(8)
        won: list[int] = []

        def race(number: int, path: str = f"leases/{attempt}", start: threading.Barrier = start, won: list[int] = won):
            start.wait()
            if others[number].create(path, b"%d" % number * 5000):
                won.append(number)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert location.read(f"leases/{attempt}") == b"%d" % won[0] * 5000
    assert location.names("leases") == [str(attempt) for attempt in range(5)]


def test_a_reader_never_sees_half_an_object_nor_its_temporary_file(tmp_path: Path):
    location = open_location(str(tmp_path / "run"))
    contents = [bytes([i]) * 200_000 for i in range(2)]
    location.write("f/a", contents[0])
    done = threading.Event()

    def write():
        for i in range(60):
            location.write("f/a", contents[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert location.read("f/a") in contents
        assert location.names("f") == ["a"]
    writer.join()
    location.create("f/a", b"refused")
    assert [path.name for path in (tmp_path / "run" / "f").iterdir()] == ["a"]


@given(start=st.integers(0, 12), num_bytes=st.integers(1, 12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_range_gives_what_there_is_of_it(location: Location, start: int, num_bytes: int):
    location.write("ranges", b"0123456789")
    assert location.read_range("ranges", start, num_bytes) == b"0123456789"[start : start + num_bytes]


def test_a_range_of_an_empty_object_is_empty_and_of_none_is_none(location: Location):
    location.write("f/empty", b"")
    assert location.read_range("f/empty", 0, 5) == b""
    assert location.read_range("f/missing", 0, 5) is None
    assert location.read_range("f/missing", 5, 5) is None


def test_sizes_are_of_every_object_under_a_folder_at_any_depth(location: Location):
    for path, length in (("f/b", 3), ("f/sub/deep/c", 0), ("f/a", 70_000), ("f2/d", 5), ("top", 1)):
        location.write(path, b"x" * length)
    assert location.sizes("f") == {"f/a": 70_000, "f/b": 3, "f/sub/deep/c": 0}
    assert list(location.sizes("f")) == sorted(location.sizes("f"))
    assert location.sizes("f/sub") == {"f/sub/deep/c": 0}
    assert location.sizes("nothing") == {}
    assert len(location.sizes("")) == 5
    assert [location.size(path) for path in ("f/a", "f/sub/deep/c", "g", "f/a/b")] == [70_000, 0, None, None]


def test_what_is_deleted_is_gone_and_the_rest_stays(location: Location):
    for path in ("f/a", "f/b", "f/sub/c"):
        location.write(path, b"x")
    location.delete(["f/a", "f/never", "elsewhere/never", "f/sub/c"])
    assert location.sizes("") == {"f/b": 1}
    assert location.read("f/a") is None
    location.delete([])
    location.delete(["f/a"])
    location.delete(iter(["f/b"]))
    assert location.sizes("") == {}
    assert location.create("f/a", b"again")


@pytest.mark.s3
def test_more_objects_than_one_request_deletes_are_deleted(s3_endpoint: str, s3_bucket: str):
    location = open_location(f"s3://{s3_bucket}/{uuid.uuid4().hex}", s3_endpoint)
    there = ["0000", "0999", "1000", "2300"]
    for name in [*there, "kept"]:
        location.write(name, b"x")
    location.delete(f"{number:04}" for number in range(2301))
    assert location.sizes("") == {"kept": 1}


def test_a_folder_is_removed_when_nothing_is_in_it(tmp_path: Path):
    location = open_location(str(tmp_path / "run"))
    location.remove_empty_folder()
    location.write("f/deep/a", b"x")
    location.delete(["f/deep/a"])
    location.remove_empty_folder()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.s3
def test_each_question_is_one_request(s3_endpoint: str, s3_bucket: str):
    with counting_server(s3_endpoint) as (endpoint, requests):
        location = open_location(f"s3://{s3_bucket}/{uuid.uuid4().hex}", endpoint)
        location.write("f/a", b"x" * 100_000)
        for ask, method in (
            (lambda: location.read("f/a"), "GET"),
            (lambda: location.read("f/missing"), "GET"),
            (lambda: location.read_range("f/a", 10, 20), "GET"),
            (lambda: location.size("f/a"), "HEAD"),
            (lambda: location.write("f/b", b"y"), "PUT"),
            (lambda: location.create("f/c", b"y"), "PUT"),
            (lambda: location.names("f"), "GET"),
            (lambda: location.sizes("f"), "GET"),
            (lambda: location.delete(["f/b", "f/c", "f/missing"]), "POST"),
        ):
            requests.clear()
            ask()
            assert [request.split()[0] for request in requests] == [method], requests


@pytest.mark.s3
def test_a_refused_create_is_one_request_or_a_look_at_what_is_there(s3_endpoint: str, s3_bucket: str):
    with counting_server(s3_endpoint) as (endpoint, requests):
        location = open_location(f"s3://{s3_bucket}/{uuid.uuid4().hex}", endpoint)
        location.write("f/a", b"x")
        requests.clear()
        assert not location.create("f/a", b"z")
        # Ceph's gateway answers a refused condition like any other bad request, so only a look tells them apart.
        assert [request.split()[0] for request in requests] in (["PUT"], ["PUT", "GET"])


def test_an_url_is_told_back_without_a_trailing_slash(tmp_path: Path):
    assert open_location(f"{tmp_path}/run/").url == str(tmp_path / "run")
    assert open_location("s3://bucket/a/b/").url == "s3://bucket/a/b"


PREFIXES = ["/a//b", "./a/./b/", "a b", "ä/ü", "a%2Fb", "a?b", "a#b", "a+b&c=d", "a*b[c]", "a\\b", "~/x"]


@pytest.mark.s3
@pytest.mark.parametrize("prefix", PREFIXES)
def test_objects_and_zarr_arrays_of_any_prefix_are_in_one_place(s3_endpoint: str, s3_bucket: str, prefix: str):
    place = uuid.uuid4().hex[:12]
    location = open_location(f"s3://{s3_bucket}/{place}/{prefix}", s3_endpoint)
    location.write("run.json", b"{}")
    assert location.create("drivers/000001.json", b"{}")
    with location.errors():
        zarr.create_array(location.zarr(read_only=False), name="array", data=np.ones(3), chunks=(2,))
    objects = {"array/c/0", "array/c/1", "array/zarr.json", "drivers/000001.json", "run.json"}
    assert objects == {path for path in location.sizes("") if path != "zarr.json"}
    assert location.names("drivers") == ["000001.json"]
    # As the page on stores says to read it without this package, by the URL that the location reports.
    options = {"endpoint_url": s3_endpoint}
    plain = zarr.open_array(location.url, path="array", mode="r", storage_options=options)
    assert np.asarray(plain[:]).tolist() == [1.0, 1.0, 1.0]
    key = location.url.removeprefix(f"s3://{s3_bucket}/")
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    listed = client.list_objects_v2(Bucket=s3_bucket, Prefix=f"{place}/")["Contents"]
    assert sorted(o["Key"] for o in listed) == sorted(f"{key}/{path}" for path in location.sizes(""))
    location.delete(location.sizes(""))
    assert open_location(f"s3://{s3_bucket}/{place}", s3_endpoint).sizes("") == {}


def test_opening_creates_nothing(tmp_path: Path):
    open_location(str(tmp_path / "run")).is_empty()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("url", "code"), [("gs://bucket/x", "unknown_scheme"), ("s3://", "no_bucket")])
def test_an_url_that_cannot_be_a_store_is_refused(url: str, code: str):
    with pytest.raises(InputError) as caught:
        open_location(url)
    assert (caught.value.code, caught.value.field) == (code, "store.url")


@pytest.mark.parametrize("place", ["/dev/null/x", "a_file/run", "a_file"])
def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path, place: str):
    (tmp_path / "a_file").write_text("I am not a folder.")
    location = open_location(str(tmp_path / place))
    for act in (
        lambda: location.write("f/a", b"x"),
        lambda: location.create("f/a", b"x"),
        location.is_empty,
        lambda: location.names("f"),
    ):
        with pytest.raises(InputError) as caught:
            act()
        assert (caught.value.code, caught.value.field) == ("store_not_a_directory", "store.url")
        assert location.url in str(caught.value)
    assert location.read("f/a") is None
    assert (tmp_path / "a_file").read_text() == "I am not a folder."


def test_a_name_that_is_too_long_is_refused(tmp_path: Path):
    location = open_location(str(tmp_path / "run"))
    name = "n" * 300
    for act in (lambda: location.write(f"f/{name}", b"x"), lambda: location.create(f"f/{name}", b"x")):
        with pytest.raises(InputError, match="File name too long") as caught:
            act()
        assert caught.value.field == "store.url"


def test_a_file_system_that_may_only_be_read_is_refused():
    with pytest.raises(AtlasError) as caught:
        open_location("/proc/persona_atlas").write("f/a", b"x")
    assert caught.value.field == "store.url"


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3_endpoint: str):
    location = open_location("s3://there-is-no-such-bucket/x", s3_endpoint)
    for act in (location.is_empty, lambda: location.write("a", b"x"), lambda: location.create("a", b"x")):
        with pytest.raises(InputError, match="there-is-no-such-bucket") as caught:
            act()
        assert (caught.value.code, caught.value.field) == ("no_bucket", "store.url")


@pytest.mark.s3
def test_the_root_of_a_bucket_may_be_the_place(s3_endpoint: str):
    import boto3

    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="a-bucket-of-its-own")
    location = open_location("s3://a-bucket-of-its-own", s3_endpoint)
    location.write("run.json", b"x")
    assert location.read("run.json") == b"x"
    assert not location.is_empty()


def test_a_server_that_is_not_there_is_a_passing_trouble_that_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        location = open_location("s3://bucket/x", endpoint)
        with pytest.raises(TransientError, match=endpoint) as caught:
            location.read("run.json")
    assert caught.value.retryable


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_credentials_are_named_whatever_is_asked(monkeypatch: pytest.MonkeyPatch, code: str):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with refusing_server(code) as endpoint:
        location = open_location("s3://bucket/x", endpoint)
        for act in (
            lambda: location.read("run.json"),
            lambda: location.read_range("a", 0, 5),
            lambda: location.size("a"),
            lambda: location.write("a", b"x"),
            lambda: location.create("a", b"x"),
            lambda: location.names("commits"),
            lambda: location.sizes("commits"),
            lambda: location.delete(["a"]),
            location.is_empty,
        ):
            # The answer to HEAD has no body, and so no code: the location asks once more.
            with pytest.raises(InputError, match=f"refused these credentials: {code}") as caught:
                act()
            assert (caught.value.code, caught.value.field) == ("store_denied", "store.url")


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://host", "https://"])
def test_an_endpoint_that_is_no_url_is_refused_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, endpoint: str):
    for variable in (None, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        if variable is not None:
            monkeypatch.setenv(variable, endpoint)
        with pytest.raises(InputError, match=endpoint) as caught:
            open_location("s3://bucket/x", None if variable else endpoint)
        assert (caught.value.code, caught.value.field) == ("bad_endpoint", "store.endpoint_url")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"AWS_PROFILE": "of_somebody_else"}, "of_somebody_else"),
        ({"AWS_ACCESS_KEY_ID": "half"}, "AWS_SECRET_ACCESS_KEY"),
        ({}, "Unable to locate credentials"),
    ],
    ids=["profile", "half", "none"],
)
def test_credentials_that_are_not_there_are_the_askers_to_give(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], named: str
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    location = open_location("s3://bucket/x", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=named) as caught:
        location.read("run.json")
    assert (caught.value.code, caught.value.field) == ("no_credentials", "store.url")
    assert "AWS_PROFILE" in str(caught.value)


def test_only_what_cannot_be_made_again_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", flushed.append)
    location = open_location(tmp_path)
    assert location.create("folder/a", b"one", flush=False)
    assert not location.create("folder/a", b"two", flush=False)
    assert location.read("folder/a") == b"one"
    assert not flushed
    assert location.create("folder/b", b"one")
    # The file, and its name in the folder.
    assert len(flushed) == 2
