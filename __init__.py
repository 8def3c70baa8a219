"""Persona Atlas: extract, keep and query the activations behind a language model's personas.

The public face. It is light: importing it loads neither torch nor ray.

Example:
    >>> import persona_atlas
    >>> run = persona_atlas.open_run("runs/demo")  # doctest: +SKIP
    >>> run.activations(kind="role", persona="pirate", layer=15).values.shape  # doctest: +SKIP
    (8, 576)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .jobs.catalog import load_catalog
    from .jobs.plan import make_plan
    from .jobs.sources.load import load_source
    from .jobs.spec import JobSpec, load_spec
    from .storage.query.run import open_run

_version = "0.1.0"
__version__ = _version

__all__ = ["JobSpec", "__version__", "load_catalog", "load_source", "load_spec", "make_plan", "open_run"]

_HOMES = {
    "JobSpec": "jobs.spec",
    "load_catalog": "jobs.catalog",
    "load_source": "jobs.sources.load",
    "load_spec": "jobs.spec",
    "make_plan": "jobs.plan",
    "open_run": "storage.query.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
