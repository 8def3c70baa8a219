"""The page of the report: one file that loads nothing, its numbers, and what it says where there are none."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.analysis.report import origin_of_vectors, render_page, render_report, write_report
from persona_atlas.analysis.report.packing import unpacked
from persona_atlas.storage.derived.reduction import ARRAYS, Reduction
from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.query.run import Run

from fakes import small_plan, small_spec
from full_reduction import full_origin, full_reduction
from stored_runs import small_run

NOTE = "No scores are used: every rollout counts"
SECTIONS = {
    "The persona map",
    "Variance by component",
    "The Assistant Axis by layer",
    "Single rollouts on the axis",
    "Roles along the axis",
    "Traits along the axis",
    "Every persona in numbers",
    "Provenance",
}


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reduction]:
    run = small_run(str(tmp_path_factory.mktemp("store") / "run"))
    return run, reduce_run(run)


@pytest.fixture(scope="module")
def small() -> Reduction:
    return full_reduction(num_roles=7, num_traits=5, num_layers=4, d_model=6, num_rollouts=60)


def data_of(html: str) -> dict[str, Any]:
    return json.loads(html.split("id='data'>")[1].split("</script>")[0])


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
    assert "default-src 'none'" in html  # a browser refuses every request
    assert "@import" not in html
    assert page.headings == SECTIONS
    assert page.scripts == 2
    assert "content='width=device-width" in html  # a telephone shows it at its own width
    assert NOTE in html
    assert "not complete" not in html
    for role in reduction.role_names:
        assert f"<td>{role}</td>" in html
    assert reduction.reduction_id in html


def test_the_page_holds_the_numbers_of_every_layer(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    data = data_of(render_report(run, reduction))
    assert data["layers"] == list(run.layers)
    assert data["roles"]["names"] == list(reduction.role_names)
    assert reduction.axis is not None
    assert reduction.role_vectors is not None
    assert reduction.default_vector is not None
    unit_LD = reduction.axis / np.linalg.norm(reduction.axis, axis=1, keepdims=True)
    by_hand_LP = np.einsum("pld,ld->lp", reduction.role_vectors, unit_LD)
    np.testing.assert_allclose(unpacked(data["roles"]["projection"]), by_hand_LP, atol=1e-3)
    default_L1 = (reduction.default_vector * unit_LD).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(unpacked(data["default"]["projection"]), default_L1, atol=1e-3)
    # The length of the axis, in standard deviations of the roles along it.
    strength_L = np.linalg.norm(reduction.axis, axis=1) / by_hand_LP.std(axis=1)
    np.testing.assert_allclose(data["axis"]["strength"], strength_L, rtol=1e-3)
    assert reduction.pca_mean is not None
    assert reduction.pca_components is not None
    assert reduction.pca_variance_ratio is not None
    centred_PLD = reduction.role_vectors - reduction.pca_mean
    scores_LPK = np.einsum("pld,lkd->lpk", centred_PLD, reduction.pca_components)
    np.testing.assert_allclose(unpacked(data["spaces"]["roles"]["roles"]), scores_LPK[..., :3], atol=2e-3)
    assert data["spaces"]["roles"]["needed"][0] == [
        1 if ratio[0] >= 0.7 else 2 for ratio in reduction.pca_variance_ratio
    ]


def test_the_histograms_hold_every_rollout_and_the_thresholds_are_floors(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    data = data_of(render_report(run, reduction))
    kinds = dict(zip(data["histograms"]["kinds"], data["histograms"]["totals"], strict=True))
    counted = run.index["kind"].value_counts().to_pylist()
    assert kinds == {count["values"]: count["counts"] for count in counted}
    shares_LKB = unpacked(data["histograms"]["shares"])
    np.testing.assert_allclose(shares_LKB.sum(axis=2), 100, atol=0.1)
    assert reduction.projections is not None
    assert reduction.projection_rows is not None
    at = dict(zip(run.index["row"].to_pylist(), run.index["kind"].to_pylist(), strict=True))
    is_role_N = np.array([at[row] == "role" for row in reduction.projection_rows.tolist()])
    expected_B, _ = np.histogram(
        reduction.projections[is_role_N, 2], bins=shares_LKB.shape[2], range=tuple(data["histograms"]["range"][2])
    )
    np.testing.assert_allclose(shares_LKB[2, list(kinds).index("role")], 100 * expected_B / kinds["role"], atol=0.1)
    assert reduction.floor_on_axis is not None
    np.testing.assert_allclose(data["thresholds"]["floor"], reduction.floor_on_axis, rtol=1e-5)


def test_every_point_has_responses_with_what_was_asked_and_their_projection(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    data = data_of(render_report(run, reduction))
    personas = {(line["kind"], line["persona"]) for line in run.index.to_pylist()}
    assert set(data["samples"]) == {f"{kind}/{name}" for kind, name in personas}
    projections_LS = unpacked(data["sampleProjections"])
    assert reduction.projections is not None
    assert reduction.projection_rows is not None
    places = {row: place for place, row in enumerate(reduction.projection_rows.tolist())}
    texts = run.rollouts(persona="poet").to_pylist()
    samples = data["samples"]["role/poet"]
    assert len(samples) == 2
    for sample in samples:
        line = next(t for t in texts if (t["question"], t["system_prompt"]) == (sample["question"], sample["system"]))
        assert line["response"].strip() == sample["response"]
        expected_L = reduction.projections[places[line["row"]]]
        np.testing.assert_allclose(projections_LS[:, sample["at"]], expected_L, atol=1e-2)
    assert data["descriptions"]["role/poet"]


def test_responses_are_those_that_count_with_their_scores(tmp_path: Path):
    run = small_run(str(tmp_path / "run"))
    lines = [line for line in run.index.to_pylist() if line["kind"] == "role"]
    for unit in {line["unit_id"] for line in lines}:
        rows = [line["row"] for line in lines if line["unit_id"] == unit]
        write_scores(run.location, "j", unit, rows, [3.0 if place == 1 else 1.0 for place in range(len(rows))])
    html = render_report(run, reduce_run(run, min_count=1))
    samples = data_of(html)["samples"]
    assert [sample["score"] for sample in samples["role/poet"]] == [3]
    assert samples["default/assistant_default"][0]["score"] is None
    assert "means of the rollouts scored 3 by the judge j" in html


def test_a_full_catalog_takes_less_than_5_mb():
    reduction = full_reduction()
    html = render_page(full_origin(reduction), reduction)
    assert len(reduction.role_names) == 275
    assert len(reduction.layers) == 80
    assert 2_000_000 < len(html.encode()) < 5_000_000


@pytest.mark.parametrize("fill", [None, np.nan])
def test_a_page_stands_without_any_one_array(small: Reduction, fill: float | None):
    assert len(ARRAYS) > 40
    for name in ARRAYS:
        values = getattr(small, name)
        if fill is None or values is None or values.dtype.kind != "f":
            lacking = dataclasses.replace(small, **{name: None})
        else:
            lacking = dataclasses.replace(small, **{name: np.full_like(values, fill)})
        page = _Page(render_page(full_origin(lacking), lacking))
        assert "Provenance" in page.headings, name


def test_each_section_says_what_it_lacks(small: Reduction):
    bare = Reduction("0" * 16, (3,), (), (), {})
    html = render_page(origin_of_vectors(bare, "a model"), bare)
    assert _Page(html).headings == SECTIONS - {"The persona map"} | {"No map of personas"}
    for sentence in (
        "There is no axis: it needs rollouts of the default Assistant and of a role.",
        "There are no principal components of roles",
        "neither a split-half cosine nor a bootstrap interval",
        "There is no axis, so roles have no place on it.",
        "There is no axis.",
        "no projections of single rollouts",
        "There are no thresholds",
        "The reduction has no personas.",
        "It is not known which rollouts count.",
    ):
        assert sentence in html
    imported = Reduction(
        "0" * 16,
        small.layers,
        small.role_names,
        small.trait_names,
        {"source": "assistant-axis"},
        role_vectors=small.role_vectors,
        trait_vectors=small.trait_vectors,
        default_vector=small.default_vector,
        axis=small.axis,
    )
    html = render_page(origin_of_vectors(imported, "a model", n_layers=4), imported)
    assert "without the responses that they were made of" in html
    data = data_of(html)
    assert unpacked(data["roles"]["projection"]).shape == (4, 7)
    assert data["roles"]["counts"] == [None] * 7
    assert data["samplesAbsent"].startswith("No response is kept")


def test_what_limits_the_trust_is_said_at_the_layers_that_it_concerns(small: Reduction):
    notes = data_of(render_page(full_origin(small), small))["notes"]
    assert "have cosine 0.50 at layer 0" in " ".join(notes[0])
    assert "have cosine" not in " ".join(notes[3])
    assert "its cosine with this axis is 0.60 to 0.80 at layer 0" in " ".join(notes[0])
    assert "Massive activations at layer 3, in 2 coordinates, hold more than 10 %" in " ".join(notes[3])
    assert "Massive" not in " ".join(notes[0])
    assert small.pca_z_scale is not None
    little = small.pca_z_scale.copy()
    little[3, [1, 3]] *= 0.01
    still = dataclasses.replace(small, pca_z_scale=little)
    assert "Massive" not in json.dumps(data_of(render_page(full_origin(still), still))["notes"])
    weak = dataclasses.replace(small, pc1_axis_cosine=np.full(4, 0.25, np.float32))
    assert "PC1 is not the axis at layer 2: their cosine is +0.25" in " ".join(
        data_of(render_page(full_origin(weak), weak))["notes"][2]
    )


def test_a_capping_setting_is_recommended_by_depth_in_both_signs(small: Reduction):
    wide = full_reduction(num_roles=5, num_traits=3, num_layers=64, d_model=5, num_rollouts=50)
    html = render_page(full_origin(wide), wide)
    assert "layers_46:54-p0.25" in html
    assert "No evaluation has been run." in html
    assert wide.floor_on_axis is not None
    floor = float(wide.floor_on_axis[1, 46])
    shown = [f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in (floor, -floor)]
    assert f"<tr><td>layer 46</td><td class='number'>{shown[0]}</td><td class='number'>{shown[1]}</td></tr>" in html
    some = dataclasses.replace(small, layers=(0, 1, 2, 40))
    origin = dataclasses.replace(full_origin(small), n_layers=64, start_layer=2)
    assert "needs layers or a percentile that are not here" in render_page(origin, some)


def test_a_report_of_a_part_of_a_run_says_so(tmp_path: Path):
    run = small_run(str(tmp_path / "run"), leave_out=["role.poet.pos.p1.b0"])
    assert "11 of 12 units" in render_report(run, reduce_run(run))


def test_a_report_without_axis_and_pca_still_stands(tmp_path: Path):
    personas = {"roles": {"names": ["pirate"], "prompts": 1, "questions": 2}, "default": {"prompts": 0}}
    url = str(tmp_path / "run")
    run = small_run(url, small_spec(url, personas=personas))
    html = render_report(run, reduce_run(run))
    assert "There is no axis" in html
    assert "No map of personas" in _Page(html).headings


def test_a_report_opens_at_the_layer_that_was_asked_for(reduced: tuple[Run, Reduction]):
    assert data_of(render_report(*reduced, layer=1))["start"] == 1
    assert data_of(render_report(*reduced))["start"] == 2


def test_names_from_a_spec_are_escaped(tmp_path: Path):
    url = str(tmp_path / "run")
    spec = small_spec(url, model={"source": "none", "name": "<script>alert(1)</script>"})
    run = small_run(url, spec, leave_out=[unit.unit_id for unit in small_plan(spec).units][3:])
    html = render_report(run, reduce_run(run))
    assert "<script>alert(1)" not in html
    assert "</script>" not in html.split("id='data'>")[1].split("</script>")[0]
    assert "&lt;script&gt;alert(1)" in html


def test_a_report_is_kept_in_the_runs_store(tmp_path: Path):
    run = small_run(str(tmp_path / "run"))
    reduction = reduce_run(run)
    where = write_report(run, reduction)
    assert Path(where) == tmp_path / "run" / "report.html"
    assert NOTE in Path(where).read_text()
