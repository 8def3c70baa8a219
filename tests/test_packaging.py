"""The package as a thing to import: light, whole, under one name, with one-way imports."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import persona_atlas
import pytest


def test_importing_the_face_and_the_command_line_loads_neither_torch_nor_ray():
    program = (
        "import sys, persona_atlas, persona_atlas.cluster.cli\n"
        "[getattr(persona_atlas, name) for name in persona_atlas.__all__]\n"
        "print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_face_is_sorted_and_every_name_is_there():
    assert persona_atlas.__all__ == sorted(persona_atlas.__all__)
    for name in persona_atlas.__all__:
        assert getattr(persona_atlas, name) is not None
    assert set(persona_atlas.__all__) <= set(dir(persona_atlas))
    with pytest.raises(AttributeError):
        getattr(persona_atlas, "nothing_of_the_kind")  # noqa: B009 - the name is not there


def test_every_module_imports_and_says_what_it_is():
    modules = [m.name for m in pkgutil.walk_packages(persona_atlas.__path__, "persona_atlas.")]
    folders = ("jobs", "workers", "storage", "analysis", "cluster")
    ours = [name for name in modules if name.split(".")[1] in folders and not name.endswith("__main__")]
    assert len(ours) > 50
    for name in ours:
        assert importlib.import_module(name).__doc__, name


def test_nothing_bare_is_installed():
    for folder in ("jobs", "workers", "storage", "analysis", "cluster"):
        program = f"import {folder}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd="/", check=False)
        assert done.returncode != 0, folder
