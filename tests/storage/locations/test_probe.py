"""The probe of a store: what is fit is said to be, what ignores a condition is told on, and nothing is left behind."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.store_spec import S3Access
from persona_atlas.storage.locations import probe
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.locations.probe import ProbeResult, probe_store

from counted import Counted, refusing_server
from fakes import small_plan
from stored_runs import store_run

NEEDED = {"write", "list_after_write", "ranges"}
ALL = {*NEEDED, "delete", "conditional_create", "conditional_create_race", "hard_links", "wrong_secret", "pace"}


@pytest.fixture
def fewer_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes and one counted round, which start sooner than eight."""
    monkeypatch.setattr(probe, "RACERS", 2)
    monkeypatch.setattr(probe, "ROUNDS", 1)


def by_name(findings: list[ProbeResult]) -> dict[str, ProbeResult]:
    assert {finding.name for finding in findings if finding.is_needed} == NEEDED
    for finding in findings:
        assert bool(finding.consequence) == (finding.holds is False), finding
    found = {finding.name: finding for finding in findings}
    assert set(found) == ALL
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_races")
def test_a_directory_is_fit_and_the_run_in_it_is_left_alone(tmp_path: Path):
    location = store_run(str(tmp_path / "run"), small_plan())
    before = sorted(tmp_path.rglob("*"))
    sizes = location.sizes("")
    found = by_name(probe_store(str(tmp_path / "run")))
    assert {name for name, finding in found.items() if finding.holds} == ALL - {"wrong_secret"}
    assert found["wrong_secret"].holds is None
    assert sorted(tmp_path.rglob("*")) == before
    assert location.sizes("") == sizes


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.usefixtures("fewer_races")
def test_an_s3_server_is_fit_and_one_that_takes_any_secret_is_told_on(s3_endpoint: str, s3_bucket: str):
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    findings = probe_store(url, s3_endpoint)
    found = by_name(findings)
    assert {name for name, finding in found.items() if finding.holds} >= ALL - {"wrong_secret", "hard_links"}
    assert found["hard_links"].holds is None
    # moto takes any secret; another server that is tested against need not.
    if "ATLAS_TEST_S3" not in os.environ:
        assert found["wrong_secret"].holds is False
        assert "accepted" in found["wrong_secret"].message
        assert "restrict access to it" in found["wrong_secret"].consequence
    assert open_location(url, s3_endpoint).sizes("") == {}


class Careless(Counted):
    """A store that takes no notice of the condition of a conditional write."""

    def create(self, path: str, data: bytes, *, flush: bool = True) -> bool:
        self.write(path, data)
        return True


def open_careless(url: str, endpoint_url: str | None = None, access: S3Access | None = None) -> Location:
    return Careless(open_location(url, endpoint_url))


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_races")
def test_a_store_that_ignores_the_condition_is_told_on_with_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # No server at hand does this, so the store is spoilt on its way in; the racing processes see the real one.
    monkeypatch.setattr(probe, "open_location", open_careless)
    found = by_name(probe_store(str(tmp_path)))
    assert found["conditional_create"].holds is False
    assert "Start one driver at a time" in found["conditional_create"].consequence
    assert not found["conditional_create"].is_needed
    assert found["write"].holds
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_give_back_what_it_took_is_found_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Forgetful(Counted):
        def write(self, path: str, data: bytes) -> None:
            if self.read(path) is None:
                super().write(path, data)

    monkeypatch.setattr(
        probe, "open_location", lambda url, endpoint_url=None, access=None: Forgetful(open_location(url))
    )
    monkeypatch.setattr(probe, "_race", lambda *_: ProbeResult("conditional_create_race", True, False, "not tried"))
    found = by_name(probe_store(str(tmp_path)))
    assert found["write"].holds is False
    assert found["write"].consequence == "No run can be kept here."
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_may_not_be_written_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a_file").write_text("I am not a folder.")
    with pytest.raises(InputError) as caught:
        probe_store(str(tmp_path / "a_file"))
    assert caught.value.code == "store_not_a_directory"
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_refused_credentials_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with refusing_server("InvalidAccessKeyId") as endpoint, pytest.raises(InputError) as caught:
        probe_store("s3://bucket/x", endpoint)
    assert caught.value.code == "store_denied"


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_named(s3_endpoint: str):
    with pytest.raises(InputError, match="no-such-bucket-atlas") as caught:
        probe_store("s3://no-such-bucket-atlas/x", s3_endpoint)
    assert caught.value.code == "no_bucket"
