"""Vectors with a known direction, and a run that has them."""

from __future__ import annotations

import pytest
from persona_atlas.storage.query.run import Run

from planted_vectors import Planted, plant, planted_run


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, planted: Planted) -> Run:
    return planted_run(str(tmp_path_factory.mktemp("store") / "run"), planted.reduction)
