"""botocore chooses the server, and what it chose is used, reported and sent along."""

from __future__ import annotations

from pathlib import Path

import pytest
from persona_atlas.cluster.submission.submit import resolved
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.locations.s3_server import S3Server, configured_server, resolved_access

from fakes import small_spec

CONFIGURATION = """
[default]
endpoint_url = http://profile:1
region = us-west-2

[profile services]
services = mine
region = eu-central-1

[services mine]
s3 =
  endpoint_url = http://service:1

[profile broken]
services = none
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(CONFIGURATION)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("environment", "endpoint_url", "region"),
    [
        ({}, None, None),
        ({"AWS_ENDPOINT_URL": "http://all:1"}, "http://all:1", None),
        ({"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:1"}, "http://s3:1", None),
        ({"AWS_ENDPOINT_URL_S3": "http://s3:1", "AWS_DEFAULT_REGION": "eu-west-1"}, "http://s3:1", "eu-west-1"),
        ({"AWS_ENDPOINT_URL": "http://all:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, None, None),
        ({"AWS_CONFIG_FILE": "config"}, "http://profile:1", "us-west-2"),
        ({"AWS_CONFIG_FILE": "config", "AWS_ENDPOINT_URL": "http://all:1"}, "http://all:1", "us-west-2"),
        ({"AWS_CONFIG_FILE": "config", "AWS_PROFILE": "services"}, "http://service:1", "eu-central-1"),
    ],
)
def test_the_server_is_the_one_that_botocore_finds(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    endpoint_url: str | None,
    region: str | None,
):
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name == "AWS_CONFIG_FILE" else value)
    assert configured_server() == S3Server(endpoint_url, region)
    assert open_location("s3://bucket/x").endpoint_url == endpoint_url
    sent = resolved(small_spec("s3://bucket//x")).store
    assert (sent.url, sent.endpoint_url, sent.region) == ("s3://bucket/x", endpoint_url, region)


def test_the_spec_comes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    given = {"url": "s3://bucket/x", "endpoint_url": "http://spec:1", "region": "us-east-2", "requester_pays": True}
    sent = resolved(small_spec(store=given)).store
    assert sent.model_dump() == given | {"mantissa_bits": 10}
    assert resolved_access(sent) == sent.access


def test_a_directory_has_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    sent = resolved(small_spec(str(tmp_path / "run"))).store
    assert (sent.endpoint_url, sent.region) == (None, None)


@pytest.mark.parametrize(("profile", "code"), [("nobody", "no_credentials"), ("broken", "bad_aws_configuration")])
def test_a_configuration_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str, code: str
):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(InputError, match="AWS_PROFILE") as caught:
        open_location("s3://bucket/x")
    assert caught.value.code == code


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "store.endpoint_url", "profile"])
@pytest.mark.parametrize(
    "url", ["http://user:geheim@host:9000", "http://geheim@host", "http://u:ge/heim@host", "http://host/?token=geheim"]
)
def test_an_endpoint_that_holds_a_secret_is_refused_wherever_it_stands_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, url: str
):
    given = None
    if variable == "profile":
        (tmp_path / "config").write_text(f"[default]\nendpoint_url = {url}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    elif variable == "store.endpoint_url":
        given = url
    else:
        monkeypatch.setenv(variable, url)
    for ask in (lambda: open_location("s3://bucket/x", given), lambda: resolved(_spec(given))):
        with pytest.raises(InputError) as caught:
            ask()
        assert caught.value.field == "store.endpoint_url"
        shown = repr(caught.value) + str(caught.value) + str(caught.value.as_dict()) + str(caught.value.__cause__)
        assert "geheim" not in shown
        assert "heim@" not in shown


def _spec(endpoint_url: str | None):
    return small_spec("s3://bucket/x").replaced(store={"endpoint_url": endpoint_url})
