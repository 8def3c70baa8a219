"""The environment in which a process joins a cluster: what the job sets is not set twice."""

from __future__ import annotations

import json

import pytest
from persona_atlas.cluster.pool.ray_environment import joining_environment, worker_environment


@pytest.mark.parametrize(
    ("job", "is_set_by_job"),
    [
        (None, False),
        ({}, False),
        ({"runtime_env": {}}, False),
        ({"runtime_env": {"env_vars": {"HF_HOME": "/cache"}}}, False),
        ({"runtime_env": {"env_vars": {"RAY_worker_niceness": "0"}}}, True),
    ],
)
def test_the_niceness_is_given_once(monkeypatch: pytest.MonkeyPatch, job: object, *, is_set_by_job: bool):
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if job is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert worker_environment() == {"env_vars": {"RAY_worker_niceness": "0"}}
    assert joining_environment() == ({} if is_set_by_job else worker_environment())


def test_another_niceness_of_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_worker_niceness", "7")
    assert worker_environment() == {"env_vars": {"RAY_worker_niceness": "7"}}
