"""Summary and report of a reduction: values against numpy, and a page that is one self-contained file."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.analysis.report import render_report, write_report
from persona_atlas.analysis.summary import standardise, summarise
from persona_atlas.storage.derived.reductions import Reduction
from persona_atlas.storage.query.run import Run

from fakes import small_plan, small_spec
from stored_runs import small_run

NOTE = "No judge is configured: every rollout counts"
SECTIONS = {
    "The persona map",
    "Variance by component",
    "The Assistant Axis by layer",
    "Single rollouts on the axis",
    "Roles along the axis",
    "Provenance",
}


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reduction]:
    run = small_run(str(tmp_path_factory.mktemp("store") / "run"))
    return run, reduce_run(run)


def test_a_summary_is_of_the_middle_layer_and_ranks_roles_from_the_assistants_end(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    found = summarise(run, reduction)
    assert found.layer == 2
    assert reduction.axis is not None
    assert reduction.role_vectors is not None
    assert reduction.default_vector is not None
    direction_D = reduction.axis[2] / np.linalg.norm(reduction.axis[2])
    by_hand = {
        name: float(vector_D @ direction_D)
        for name, vector_D in zip(reduction.role_names, reduction.role_vectors[:, 2], strict=True)
    }
    assert [name for name, _, _ in found.roles] == sorted(by_hand, key=lambda name: -by_hand[name])
    values = np.array(list(by_hand.values()))
    for name, value, z in found.roles:
        assert value == pytest.approx(by_hand[name], rel=1e-4)
        assert z == pytest.approx((by_hand[name] - values.mean()) / values.std(), rel=1e-4, abs=1e-4)
    of_default = float(reduction.default_vector[2] @ direction_D)
    assert found.default_projection == pytest.approx(of_default, rel=1e-4)
    assert found.default_z == pytest.approx((of_default - values.mean()) / values.std(), rel=1e-3)
    assert found.default_z is not None
    assert found.default_z > 0


def test_a_summary_of_a_named_layer_takes_that_layers_numbers(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    for layer in run.layers:
        found = summarise(run, reduction, layer)
        assert found.layer == layer
        assert reduction.pca_variance_ratio is not None
        assert reduction.pc1_axis_cosine is not None
        assert reduction.floor_on_axis is not None
        first, second = reduction.pca_variance_ratio[layer]
        assert found.pc1_variance == pytest.approx(first)
        assert found.components_for_70 == (1 if first >= 0.7 else 2)
        assert first + second == pytest.approx(1, abs=1e-5)
        assert found.pc1_axis_cosine == pytest.approx(reduction.pc1_axis_cosine[layer])
        assert found.floors == pytest.approx(
            dict(zip(reduction.threshold_labels, reduction.floor_on_axis[:, layer], strict=True))
        )


def test_a_summary_is_plain_data_that_says_its_sign_and_its_filter(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    found = summarise(run, reduction)
    data = json.loads(json.dumps(found.as_dict()))
    assert data["roles"][0].keys() == {"role", "projection", "z_score"}
    assert "toward the Assistant" in data["direction"]
    assert (data["units_done"], data["units_planned"], data["rollouts"]) == (12, 12, 36)
    assert NOTE in found.filter_note


def test_the_ends_of_many_roles_do_not_overlap(reduced: tuple[Run, Reduction]):
    found = summarise(*reduced)
    for num_roles in (0, 3, 5, 7, 12):
        roles = tuple((f"role {i}", -float(i), 0.0) for i in range(num_roles))
        several = dataclasses.replace(found, roles=roles)
        near, far = several.assistant_end, several.far_end
        assert near == roles[:5]
        assert not set(near) & set(far)
        assert far[:1] == (roles[-1:] if num_roles > 5 else ())
        assert len(near) + len(far) == min(num_roles, 10)


def test_scores_of_values_without_spread_are_zero():
    assert standardise(np.array([3.0, 5.0]), np.array([3.0, 3.0])).tolist() == [0, 0]


class _Page(HTMLParser):
    """Collects what a page would load, and what it shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.headings: set[str] = set()
        self.scripts = 0
        self._in_heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self._in_heading = tag == "h2"
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action") and value]

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.add(data)
            self._in_heading = False


def test_a_report_is_one_file_that_loads_nothing_and_shows_everything(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    html = render_report(run, reduction)
    page = _Page(html)
    assert [load for load in page.loads if not load.startswith("data:")] == []
    assert "@import" not in html.split("</style>")[0]
    assert page.headings >= SECTIONS
    assert html.count("Plotly.newPlot(") >= 4
    assert "content='width=device-width" in html  # a telephone shows it at its own width
    assert NOTE in html
    assert "not complete" not in html
    for role in reduction.role_names:
        assert f"<td>{role}</td>" in html
    assert reduction.reduction_id in html
    assert "Nobody" in html


def test_a_report_of_a_part_of_a_run_says_so(tmp_path: Path):
    run = small_run(str(tmp_path / "run"), leave_out=["role.poet.pos.p1.b0"])
    assert "11 of 12 units" in render_report(run, reduce_run(run))


def test_a_report_without_axis_and_pca_still_stands(tmp_path: Path):
    personas = {"roles": {"names": ["pirate"], "prompts": 1, "questions": 2}, "default": {"prompts": 0}}
    url = str(tmp_path / "run")
    run = small_run(url, small_spec(url, personas=personas))
    page = _Page(render_report(run, reduce_run(run)))
    assert page.headings == {"Provenance"}


def test_names_from_a_spec_are_escaped(tmp_path: Path):
    url = str(tmp_path / "run")
    spec = small_spec(url, model={"source": "none", "name": "<script>alert(1)</script>"})
    run = small_run(url, spec, leave_out=[unit.unit_id for unit in small_plan(spec).units][3:])
    html = render_report(run, reduce_run(run))
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_a_report_is_kept_in_the_runs_store(tmp_path: Path):
    run = small_run(str(tmp_path / "run"))
    reduction = reduce_run(run)
    where = write_report(run, reduction)
    assert Path(where) == tmp_path / "run" / "report.html"
    assert NOTE in Path(where).read_text()
