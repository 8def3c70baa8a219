"""What is read of the harness's results, and what capability they come to."""

from __future__ import annotations

from typing import Any

import pytest
from persona_atlas.analysis.pareto.capability import capability_changes
from persona_atlas.analysis.pareto.task_results import MetricResult, task_result
from persona_atlas.jobs.errors import InputError


def sample(number: int, value: Any, kind: str = "none") -> dict[str, Any]:
    return {"doc_id": number, "doc_hash": f"hash{number}", "filter": kind, "acc": value}


def results(**scores: Any) -> dict[str, Any]:
    return {"results": {"task": {"alias": "task", "sample_len": 3, **scores}}}


def test_documents_of_a_group_are_those_of_its_tasks():
    content = {
        "results": {
            "all": {"acc,none": 0.6, "acc_stderr,none": 0.2},
            "one": {"acc,none": 1.0},
            "two": {"acc,none": 0.5},
        },
        "groups": {"all": {"acc,none": 0.6, "acc_stderr,none": 0.2}},
        "group_subtasks": {"all": ["some", "two"], "some": ["one"], "one": [], "two": []},
        "n-samples": {"one": {"effective": 1}, "two": {"effective": 4}},
    }
    samples = {"one": [sample(0, 1.0)], "two": [sample(number, float(number < 2)) for number in range(4)]}
    found = task_result(content, samples, "all")
    assert found.num_documents == 5
    assert found.metric("acc").documents == {
        "one/0/hash0": 1.0,
        "two/0/hash0": 1.0,
        "two/1/hash1": 1.0,
        "two/2/hash2": 0.0,
        "two/3/hash3": 0.0,
    }


def test_a_value_that_is_no_mean_of_its_documents_is_not_paired_by_them():
    scores = {"acc,none": 0.9, "acc_stderr,none": "N/A"}
    (metric,) = task_result(results(**scores), {"task": [sample(0, 1.0), sample(1, 0.0)]}, "task").metrics
    assert (metric.value, metric.stderr, metric.documents) == (0.9, None, {})


def test_the_first_metric_counts_unless_another_is_named_and_lists_are_no_scores():
    content = results(**{"acc,strict": 0.0, "acc,loose": 1.0, "tokens,none": [1, 2]})
    samples = {"task": [sample(0, 0.0, "strict"), sample(0, 1.0, "loose")]}
    found = task_result(content, samples, "task")
    assert [metric.name for metric in found.metrics] == ["acc,strict", "acc,loose"]
    assert (found.metric(None).name, found.metric("acc,loose").documents) == ("acc,strict", {"task/0/hash0": 1.0})


@pytest.mark.parametrize(
    ("content", "metric", "code"),
    [
        ({"results": {}}, None, "no_such_task"),
        (results(), None, "no_such_metric"),
        (results(**{"acc,none": float("nan")}), None, "no_such_metric"),
        (results(**{"acc,none": 0.5}), "f1", "no_such_metric"),
        (results(**{"acc,none": 0.5}) | {"higher_is_better": {"task": {"acc": False}}}, None, "lower_is_better"),
    ],
)
def test_what_has_no_score_is_refused(content: dict[str, Any], metric: str | None, code: str):
    with pytest.raises(InputError) as refused:
        task_result(content, {}, "task").metric(metric)
    assert refused.value.code == code


def metric(value: float, stderr: float | None = None, documents: dict[str, float] | None = None) -> MetricResult:
    return MetricResult("acc,none", value, stderr, True, documents or {})


def test_scores_are_divided_by_their_scales_and_paired_where_all_documents_are_the_same():
    before = {"a": metric(0.5, 0.1, {"1": 1.0, "2": 0.0}), "b": metric(60, 3.0)}
    after = {"a": metric(1.0, 0.0, {"1": 1.0, "2": 1.0}), "b": metric(50, 4.0)}
    found = capability_changes(before, [after], {"a": 1, "b": 100})
    assert found.unpaired == ("b",)
    assert found.of_task["a"].of(0).value == pytest.approx(0.5)
    change = found.of_task["b"].of(0)
    assert change.value == pytest.approx(-0.1)
    assert (change.high - change.low) / (2 * 1.96) == pytest.approx(0.05, rel=0.1), "3 and 4 of 100, as if independent"
    assert found.mean.of(0).value == pytest.approx(0.2)
    other = {"a": metric(1.0, 0.2, {"1": 1.0, "3": 1.0}), "b": metric(50, 4.0)}
    assert capability_changes(before, [other], {"a": 1, "b": 100}).unpaired == ("a", "b")


def test_scores_without_error_or_beyond_their_scale_are_refused():
    with pytest.raises(InputError) as refused:
        capability_changes({"a": metric(0.5)}, [{"a": metric(0.4)}], {"a": 1})
    assert refused.value.code == "no_standard_error"
    with pytest.raises(InputError) as refused:
        capability_changes({"a": metric(60, 1.0)}, [{"a": metric(50, 1.0)}], {"a": 1})
    assert (refused.value.code, refused.value.field) == ("beyond_scale", "pareto.capability.scales.a")
