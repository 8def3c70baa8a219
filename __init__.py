"""Persona Atlas: extract, keep and query the activations behind a language model's personas.

The public interface. Importing it loads neither torch nor ray; both are loaded when a job needs them.

Example:
    >>> import persona_atlas
    >>> run = persona_atlas.open_run("runs/demo")
    >>> run.activations(kind="role", persona="pirate", layer=15).values.shape
    (8, 576)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .jobs.version import __version__

if TYPE_CHECKING:
    from .analysis.axis_source import AxisSource, open_axis
    from .cluster.api.jobs import JobResult, extract, plan, run
    from .cluster.api.stores import compare, export, import_vectors, reduce, verify
    from .cluster.watching.monitor import Monitor
    from .jobs.catalog import load_catalog
    from .jobs.errors import AtlasError, InputError, JobError, StoreError, TransientError, UnitError
    from .jobs.interventions import Ablate, AddVector, Cap, Direction, Intervention
    from .jobs.plan import Plan
    from .jobs.sizing.estimate import estimate
    from .jobs.specs.spec import JobSpec, load_spec, make_spec
    from .storage.derived.reductions import Reduction
    from .storage.query.run import Run, open_run
    from .storage.query.vectors import VectorSet, open_vectors
    from .workers.editing.intervene import intervene


__all__ = [
    "Ablate",
    "AddVector",
    "AtlasError",
    "AxisSource",
    "Cap",
    "Direction",
    "InputError",
    "Intervention",
    "JobError",
    "JobResult",
    "JobSpec",
    "Monitor",
    "Plan",
    "Reduction",
    "Run",
    "StoreError",
    "TransientError",
    "UnitError",
    "VectorSet",
    "__version__",
    "compare",
    "estimate",
    "export",
    "extract",
    "import_vectors",
    "intervene",
    "load_catalog",
    "load_spec",
    "make_spec",
    "open_axis",
    "open_run",
    "open_vectors",
    "plan",
    "reduce",
    "run",
    "verify",
]

_MODULES = {
    "Ablate": "jobs.interventions",
    "AddVector": "jobs.interventions",
    "AtlasError": "jobs.errors",
    "AxisSource": "analysis.axis_source",
    "Cap": "jobs.interventions",
    "Direction": "jobs.interventions",
    "InputError": "jobs.errors",
    "Intervention": "jobs.interventions",
    "JobError": "jobs.errors",
    "JobResult": "cluster.api.jobs",
    "JobSpec": "jobs.specs.spec",
    "Monitor": "cluster.watching.monitor",
    "Plan": "jobs.plan",
    "Reduction": "storage.derived.reductions",
    "Run": "storage.query.run",
    "StoreError": "jobs.errors",
    "TransientError": "jobs.errors",
    "UnitError": "jobs.errors",
    "VectorSet": "storage.query.vectors",
    "compare": "cluster.api.stores",
    "estimate": "jobs.sizing.estimate",
    "export": "cluster.api.stores",
    "extract": "cluster.api.jobs",
    "import_vectors": "cluster.api.stores",
    "intervene": "workers.editing.intervene",
    "load_catalog": "jobs.catalog",
    "load_spec": "jobs.specs.spec",
    "make_spec": "jobs.specs.spec",
    "open_axis": "analysis.axis_source",
    "open_run": "storage.query.run",
    "open_vectors": "storage.query.vectors",
    "plan": "cluster.api.jobs",
    "reduce": "cluster.api.stores",
    "run": "cluster.api.jobs",
    "verify": "cluster.api.stores",
}
"""The module of each public name, which is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, which completion in a notebook asks for."""
    return sorted({*globals(), *__all__})
