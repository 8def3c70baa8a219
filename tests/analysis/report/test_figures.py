"""Figures for papers: which are drawn, what is refused, and where names stand on a map."""

from __future__ import annotations

import builtins
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.analysis.report.figures import write_figures
from persona_atlas.analysis.report.labels import SIDES, place_labels
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.derived.reduction import Reduction

from full_reduction import full_origin, full_reduction


@pytest.fixture(scope="module")
def small() -> Reduction:
    return full_reduction(num_roles=60, num_traits=6, num_layers=4, d_model=6, num_rollouts=60)


def test_a_figure_without_its_numbers_is_left_out_and_the_others_are_the_same_each_time(
    small: Reduction, tmp_path: Path
):
    pytest.importorskip("matplotlib")
    lacking = dataclasses.replace(small, axis=None, role_projection=None, projections=None, trait_axis_cosine=None)
    written, again = (
        write_figures(full_origin(lacking), lacking, tmp_path / name, 2, formats=("svg",)) for name in ("one", "two")
    )
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]
    drawn = written[0].read_text()
    assert "the default Assistant" in drawn
    assert "of the variance of the role vectors" in drawn
    assert {path.stem for path in written} == {"map-layer-2", "layers", "variance-layer-2"}
    bare = Reduction("0" * 16, (2,), (), (), {})
    assert write_figures(dataclasses.replace(full_origin(small), kinds_N=None), bare, tmp_path / "bare", 2) == []


def test_without_matplotlib_the_command_to_install_it_is_named(
    small: Reduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usual = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return usual(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="not installed") as refused:
        write_figures(full_origin(small), small, tmp_path / "figures", 2)
    assert (refused.value.code, refused.value.field) == ("not_installed", "--png")
    assert "pip install '.[figures]'" in str(refused.value.hint)
    assert not (tmp_path / "figures").exists()


def test_a_folder_that_cannot_be_made_is_named(small: Reduction, tmp_path: Path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as refused:
        write_figures(full_origin(small), small, tmp_path / "file" / "figures", 2)
    assert refused.value.code == "not_writable"


def test_names_cover_neither_points_nor_each_other():
    draw = np.random.default_rng(0)
    x, y = draw.uniform(0, 400, 200), draw.uniform(0, 300, 200)
    names = ["a name" for _ in x]
    placed = place_labels(x, y, names, 8, (400, 300), first=[5])
    assert 5 in placed
    assert 20 < len(placed) < 150
    boxes = []
    for i, side in placed.items():
        dx, dy = SIDES[side]
        wide, high = 6 * 0.62 * 8, 1.25 * 8
        cx, cy = x[i] + dx * (6 + wide / 2), y[i] + dy * (6 + high / 2)
        boxes.append((i, cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2))
    for i, left, bottom, right, top in boxes:
        assert left >= 0
        assert bottom >= 0
        assert right <= 400
        assert top <= 300
        if i == 5:
            continue
        assert not any(left < x[j] < right and bottom < y[j] < top for j in range(len(x)) if j != i)
        others = [other for j, *other in boxes if j not in (i, 5)]
        assert not any(left < r and x0 < right and bottom < t and y0 < top for x0, y0, r, t in others)
