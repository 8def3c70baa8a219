"""Every example in a docstring runs, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import persona_atlas
import pytest

PACKAGE = Path(persona_atlas.__file__).parent
FOLDERS = ("jobs", "workers", "storage", "analysis", "cluster")


def with_examples() -> list[str]:
    """Modules with an example, found by their text: importing all of them would load torch and Ray."""
    files = [
        PACKAGE / "__init__.py",
        *(file for folder in FOLDERS for file in sorted((PACKAGE / folder).rglob("*.py"))),
    ]
    places = [file.relative_to(PACKAGE) for file in files if ">>> " in file.read_text()]
    return [".".join(("persona_atlas", *place.with_suffix("").parts)).removesuffix(".__init__") for place in places]


@pytest.mark.parametrize("name", with_examples())
def test_every_example_runs_and_gives_what_it_says(name: str, documented_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(documented_folder)
    module = importlib.import_module(name)
    examples = [found for found in doctest.DocTestFinder().find(module) if found.examples]
    assert examples, "an example that doctest does not find"
    for example in examples:
        told: list[str] = []
        result = doctest.DocTestRunner().run(example, out=told.append)
        assert not result.failed, "".join(told)


def test_no_example_is_skipped():
    for name in with_examples():
        module = importlib.import_module(name)
        assert "+SKIP" not in inspect.getsource(module), name


def test_every_public_name_says_what_it_is_with_an_example():
    for name in persona_atlas.__all__:
        if name != "__version__":
            told = inspect.getdoc(getattr(persona_atlas, name)) or ""
            assert ">>> " in told, name
