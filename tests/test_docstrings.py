"""The examples in docstrings run and give what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("jobs", "workers", "storage", "analysis", "cluster")
MODULES = sorted(
    ".".join(("persona_atlas", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_every_example_in_a_docstring_gives_what_it_shows(name: str):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
