"""Threads of torch wait for each other without spinning, so that a run goes on beside other programs."""

from __future__ import annotations

import os
import subprocess
import sys

_TORCH_IS_LOADED = """
from persona_atlas.cluster.pool.session import local_resources
local_resources()
import sys
assert "torch" in sys.modules
"""


def _environment(**more: str) -> dict[str, str]:
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    return {name: value for name, value in os.environ.items() if name not in ours} | more


def _read_by_openmp(**environment: str) -> str:
    """The settings that OpenMP has taken from the environment, as it prints them when it is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _TORCH_IS_LOADED],
        env=_environment(OMP_DISPLAY_ENV="verbose", **environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_threads_of_torch_wait_passively_wherever_a_model_may_be_loaded() -> None:
    assert "GOMP_SPINCOUNT = '4000'" in _read_by_openmp()


def test_a_user_s_own_way_of_waiting_is_kept() -> None:
    program = "import os, persona_atlas.workers; print(os.environ['OMP_WAIT_POLICY'], 'GOMP_SPINCOUNT' in os.environ)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=_environment(OMP_WAIT_POLICY="active"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "active False\n"
