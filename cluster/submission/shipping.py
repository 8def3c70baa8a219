"""What travels to a cluster with a job: our code as a folder, and a working directory with the order. No credentials.

Ray puts the folder on the Python path of the job's processes. It holds this very package as it is installed here, so
that the cluster needs our dependencies and not us. Knows nothing of Ray.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ...jobs.catalog import BUILTIN
from .submitted_job import CATALOG_FOLDER, SubmittedJob

_PACKAGE = "persona_atlas"
_FOLDERS = ("jobs", "workers", "storage", "analysis", "cluster")
_KEPT = (".py", ".yaml", ".typed")


def stage_code(into: Path) -> Path:
    """Copy the package.

    Args:
        into: An empty folder.

    Returns:
        The copy, a folder named as the package is.
    """
    root = Path(__file__).parents[2]
    target = into / _PACKAGE
    # By name: the root may be a checkout, where much else lies beside the package.
    found = [path for folder in _FOLDERS for path in sorted((root / folder).rglob("*"))]
    for source in [root / "__init__.py", root / "py.typed", *found]:
        if source.suffix in _KEPT:
            copy = target / source.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    return target


def stage_job(into: Path, job: SubmittedJob) -> Path:
    """Write a job's working directory: the order, and a catalog of the user's own.

    Args:
        into: An empty folder.
        job: The job.

    Returns:
        The folder.
    """
    job.write(into)
    if job.ships_catalog:
        shutil.copytree(job.spec.personas.catalog, into / CATALOG_FOLDER)
    return into


def is_shipped_catalog(catalog: str) -> bool:
    """Whether a spec's catalog is a directory here, so that it has to come along."""
    return catalog != BUILTIN and Path(catalog).is_dir()
