"""A Pareto study that runs its tasks: each once under each setting, kept, and run again only where it is another."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.cluster.evaluation.lm_model import lm_class
from persona_atlas.cluster.run.local import open_local_backend
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.studies.pareto import (
    PreparedPareto,
    evaluate_missing,
    harm_rates,
    missing_tasks,
    pareto_results,
    prepare_pareto,
    task_results,
)
from persona_atlas.cluster.sweeping.run import run_sweep
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.judging.outcomes import Outcome
from persona_atlas.jobs.judging.rubrics import load_rubric
from persona_atlas.jobs.specs.pareto_spec import make_pareto
from persona_atlas.storage.derived.verdicts import write_verdicts
from persona_atlas.storage.format.layout import verdict_folder
from persona_atlas.storage.query.run import run_at
from rich.console import Console

from tiny_axes import tiny_run

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.lm_eval, pytest.mark.filterwarnings("ignore")]

TASKS = Path(__file__).parents[3] / "examples" / "tasks"
QUIET = Progress(Console(quiet=True))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tasks")
    axis = tiny_run(folder / "axis")
    return {
        "model": {"source": axis.model_name},
        "personas": {"roles": {"names": ["pirate", "poet"], "prompts": 1, "questions": 1}, "default": {"prompts": 0}},
        "sampling": {"max_new_tokens": 4},
        "placement": {"device": "cpu"},
        "pareto": {
            "axis": axis.url,
            "windows": ["0:2"],
            "percentiles": ["p0.25"],
            "capability": {
                "tasks": ["tiny_choices", "tiny_feelings"],
                "scales": {"tiny_feelings": 100},
                "include_path": str(TASKS),
                "limit": 3,
                "batch_size": 3,
            },
        },
        "store": {"url": str(folder / "study")},
    }


def prepared(spec: dict[str, Any], *overrides: str) -> PreparedPareto:
    return prepare_pareto(make_pareto(spec, overrides), QUIET)


def test_tasks_are_run_once_under_each_setting_and_kept(spec: dict[str, Any]):
    study = prepared(spec)
    assert run_sweep(study.sweep, QUIET, open_local_backend, nullcontext).is_complete
    assert [(one.setting.name, task) for one, task in missing_tasks(study)] == [
        (name, task) for name in ("plain", "layers_0:2-p0.25") for task in ("tiny_choices", "tiny_feelings")
    ]
    assert evaluate_missing(study, QUIET) == 4
    again = prepared(spec)
    assert evaluate_missing(again, QUIET) == 0
    # Another number of documents is another result, and the first stays.
    assert len(missing_tasks(prepared(spec, "pareto.capability.limit=2"))) == 4
    assert (
        len(missing_tasks(prepared(spec, "pareto.capability.tasks=[tiny_choices, tiny_letters, tiny_feelings]"))) == 2
    )
    results = task_results(again)
    for name in ("plain", "layers_0:2-p0.25"):
        metric = results[name]["tiny_choices"].metric(None)
        assert (metric.name, len(metric.documents)) == ("acc,none", 3)
        assert metric.value == pytest.approx(sum(metric.documents.values()) / 3)
        assert results[name]["tiny_feelings"].num_documents == 3
    rubric = load_rubric("harm", "rubric")
    for one in study.sweep.settings:
        run = run_at(one.job.location)
        for row, unit in zip(run.index["row"].to_pylist(), run.index["unit_id"].to_pylist(), strict=True):
            folder = verdict_folder(rubric.name, "planted", one.setting.folder)
            write_verdicts(study.sweep.location, folder, unit, [Outcome(row, 0.0)], rubric.labels, {row})
    found = pareto_results(again, results, harm_rates(again.sweep, rubric, "planted", rubric.harm))
    assert [point.name for point in found.points] == ["plain", "layers_0:2-p0.25"]
    assert found.capability is not None
    assert found.capability.unpaired == ()
    assert found.points[1].harm.value == 0


def test_what_is_evaluated_is_the_capped_model(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    call = lm_class()._model_call

    def watched(self: Any, *rest: Any, **named: Any) -> Any:
        seen.append(self.edits)
        return call(self, *rest, **named)

    monkeypatch.setattr(lm_class(), "_model_call", watched)
    study = prepared(
        spec, "pareto.capability.limit=1", "pareto.capability.tasks=[tiny_choices]", "pareto.capability.scales={}"
    )
    evaluate_missing(study, QUIET)
    plan = study.sweep.settings[1].job.plan
    assert plan.edits is not None
    assert seen[0] is None
    assert seen[-1] == plan.edits.intervention


def test_a_task_that_is_not_there_is_refused_before_anything_is_made(spec: dict[str, Any]):
    with pytest.raises(InputError) as refused:
        prepared(spec, "pareto.capability.tasks=[tiny_choices, tiny_chices]", "pareto.capability.scales={}")
    assert (refused.value.code, refused.value.field) == ("no_such_task", "pareto.capability.tasks.1")
    assert "tiny_choices" in (refused.value.hint or "")
    with pytest.raises(InputError) as refused:
        prepared(spec, "pareto.capability.include_path=nowhere")
    assert refused.value.field == "pareto.capability.include_path"
