"""Environment variables that Ray reads when it is imported or starts a process. Does not import Ray."""

from __future__ import annotations

import json
import os

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's variable with the configuration of the job whose entrypoint this process is, as JSON."""

_NICENESS = "RAY_worker_niceness"
_DEFAULTS = {"RAY_USAGE_STATS_ENABLED": "0", _NICENESS: "0"}
"""Ray starts its workers at nice 15 by default, and beside any other load on the machine they would get almost none
of its cores."""


def prepare_ray_environment() -> None:
    """Set what Ray reads from this process's environment, unless it is set already; call it before importing Ray.

    A Ray that is started on this machine takes its workers' priority from there.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def joining_environment() -> dict[str, dict[str, str]]:
    """Return the ``runtime_env`` with which this process joins a cluster: that of :func:`worker_environment`.

    It is empty in the entrypoint of a job of Ray's that sets the niceness already, for Ray refuses to be told twice.
    """
    job = json.loads(os.environ.get(_JOB_CONFIG) or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {} if _NICENESS in given else worker_environment()


def worker_environment() -> dict[str, dict[str, str]]:
    """Return the ``runtime_env`` that gives workers normal priority on nodes that somebody else has started.

    Example:
        >>> worker_environment()["env_vars"].keys()
        dict_keys(['RAY_worker_niceness'])
    """
    return {"env_vars": {_NICENESS: os.environ.get(_NICENESS, _DEFAULTS[_NICENESS])}}
