"""The two folders that are uploaded with a job: this package's source, and a working directory with the job file.

Ray puts the source folder on the Python path of the job's processes, so the cluster needs the dependencies of this
package but not the package itself. Neither folder holds credentials. Does not import Ray.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ...jobs.catalog import BUILTIN
from ...jobs.files.user_paths import expand_home, is_directory
from .submitted_job import CATALOG_FOLDER, SubmittedJob

_PACKAGE = "persona_atlas"
_FOLDERS = ("jobs", "workers", "storage", "analysis", "cluster")
_SUFFIXES = (".py", ".yaml", ".typed", ".js", ".css")


def stage_code(into: Path) -> Path:
    """Copy the source of this package as it is installed here.

    Args:
        into: An empty folder.

    Returns:
        The copy: a folder named like the package.
    """
    root = Path(__file__).parents[2]
    target = into / _PACKAGE
    # Folders are listed by name, because the root may be a checkout that has more than the package in it.
    found = [path for folder in _FOLDERS for path in sorted((root / folder).rglob("*"))]
    for source in [root / "__init__.py", root / "py.typed", *found]:
        if source.suffix in _SUFFIXES:
            copy = target / source.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    return target


def stage_job(into: Path, job: SubmittedJob) -> Path:
    """Write a job's working directory: the job file, and a copy of the catalog if it is a directory.

    Args:
        into: An empty folder.
        job: The job.

    Returns:
        ``into``.
    """
    job.write(into)
    if job.ships_catalog:
        shutil.copytree(expand_home(job.spec.personas.catalog, "personas.catalog"), into / CATALOG_FOLDER)
    return into


def is_shipped_catalog(catalog: str) -> bool:
    """Whether a spec's catalog is a directory on this machine, which has to be sent with the job."""
    field = "personas.catalog"
    return catalog != BUILTIN and is_directory(Path(expand_home(catalog, field)), field)
