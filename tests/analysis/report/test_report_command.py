"""``persona-atlas report``: where the page and the figures go, and stores that hold imported vectors and no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.storage.query.run import Run

from command_line import Answered, Refused
from stored_runs import small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    found = small_run(str(tmp_path_factory.mktemp("store") / "run"))
    reduce_run(found)
    return found


def test_a_page_is_written_into_the_store_or_where_it_is_asked_for(answered: Answered, run: Run, tmp_path: Path):
    assert answered("report", run.url) == {
        "report": f"{run.url}/report.html", "figures": [], "reduction": reduce_run(run).reduction_id,
    }  # fmt: skip
    page = tmp_path / "page.html"
    assert answered("report", run.url, "--out", page, "--layer", "1")["report"] == str(page)
    assert json.loads(page.read_text().split("id='data'>")[1].split("</script>")[0])["start"] == 1


def test_figures_are_written_without_a_page_unless_it_is_asked_for(answered: Answered, run: Run, tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = answered("report", run.url, "--png", tmp_path / "figures", "--layer", "3")
    assert found["report"] is None
    written = [Path(path) for path in found["figures"]]
    names = {f"{name}-layer-3" for name in ("map", "roles", "traits", "variance", "rollouts")} | {"layers"}
    assert {path.stem for path in written} == names
    assert len(written) == 3 * len(names)
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for path in written:
        assert path.parent == tmp_path / "figures"
        assert path.read_bytes().startswith(starts[path.suffix])


def test_imported_vectors_have_a_report(answered: Answered, refused: Refused, run: Run, tmp_path: Path):
    answered("export", run.url, tmp_path / "released", "--format", "assistant-axis")
    answered("import", tmp_path / "released", tmp_path / "vectors", "--model", "Qwen/Qwen3-0.6B")
    place = answered("report", tmp_path / "vectors")["report"]
    html = Path(place).read_text()
    assert "Personas of Qwen/Qwen3-0.6B" in html
    assert "without the responses that they were made of" in html
    assert "<tr><th scope='row'>imported from</th><td>assistant-axis</td></tr>" in html
    assert "no projections of single rollouts" in html
    assert refused("report", tmp_path / "vectors", "--layer", "9")["code"] == "no_such_layer"
