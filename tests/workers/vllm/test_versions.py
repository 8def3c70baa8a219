"""Which vLLM may be installed."""

from __future__ import annotations

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
