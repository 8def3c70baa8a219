"""The examples in the docstrings of reading a run, run against a stored run of the size that they show."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.storage.query import activations, run, selection
from persona_atlas.storage.run.index_keeper import refresh_index
from persona_atlas.storage.verification import verify

from fakes import FACTS, FakeEngine, small_plan, small_spec
from stored_runs import record_of, store_run

SKIP = doctest.OPTIONFLAGS_BY_NAME["SKIP"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in of ``runs/demo``: 3 roles and the default, 2 prompts and 4 questions each, 30 layers x 576."""
    folder = tmp_path_factory.mktemp("examples")
    counts = {"prompts": 2, "questions": 4}
    personas = {"roles": {"names": ["pirate", "poet", "teacher"], **counts}, "default": counts}
    plan = small_plan(small_spec(personas=personas), facts=replace(FACTS, n_layers=30, d_model=576))
    engine = FakeEngine(layers=tuple(range(30)), d_model=576, more=", and at some length")
    location = store_run(str(folder / "runs" / "demo"), plan, engine=engine)
    refresh_index(location, record_of(plan))
    reduce_run(run.open_run(location.url))
    return folder


@pytest.mark.parametrize(("module", "num_examples"), [(activations, 5), (run, 8), (selection, 1), (verify, 2)])
def test_every_example_gives_what_it_shows(
    module: ModuleType, num_examples: int, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        for example in test.examples:
            # Skipped where no store is at hand; here one is.
            example.options.pop(SKIP, None)
        runner.run(test)
    assert (runner.failures, runner.tries >= num_examples) == (0, True)
