"""What lm-evaluation-harness says of one task: read from what it returns or writes. Pure; knows no harness.

A key of its results is a metric and a filter: ``exact_match,strict-match``, and beside it
``exact_match_stderr,strict-match``. Its samples have the value of each metric for each document and filter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from ...jobs.errors import InputError, closest

_AGREES = 1e-6


@dataclass(frozen=True)
class MetricResult:
    """The value of one metric.

    Attributes:
        name: Name with its filter, as ``exact_match,strict-match``.
        value: The value.
        stderr: Its standard error; None where the harness has none.
        higher_is_better: Whether more of it is better; None where the task does not say.
        documents: Value of each document, by task, number and hash; empty where the documents were not logged, or where
            the value is not their mean.
    """

    name: str
    value: float
    stderr: float | None = None
    higher_is_better: bool | None = None
    documents: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class TaskResult:
    """The results of one task, or of a group of tasks.

    Attributes:
        task: Its name.
        num_documents: Number of documents that were asked.
        metrics: Its metrics, in the order of the harness.
    """

    task: str
    num_documents: int
    metrics: tuple[MetricResult, ...]

    def metric(self, name: str | None) -> MetricResult:
        """Return the metric that counts.

        Args:
            name: Its name with its filter, or without one where that is enough; None: the first.

        Raises:
            InputError: There is no such metric, or less of it is better.
        """
        names = [metric.name for metric in self.metrics]
        wanted = [metric for metric in self.metrics if name is None or name in (metric.name, metric.name.split(",")[0])]
        if not wanted:
            raise InputError(
                f"the task {self.task} has no metric {name!r}.",
                code="no_such_metric",
                field=f"pareto.capability.metrics.{self.task}",
                hint=closest(name or "", names) or f"It has {', '.join(names)}.",
            )
        if wanted[0].higher_is_better is False:
            raise InputError(
                f"less of {wanted[0].name} is better, and capability is a score of which more is.",
                code="lower_is_better",
                field=f"pareto.capability.metrics.{self.task}",
                hint=f"The task {self.task} has {', '.join(names)}; or leave it out.",
            )
        return wanted[0]


def task_result(
    results: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]], task: str, file: str = ""
) -> TaskResult:
    """Read the results of one task.

    Args:
        results: What the harness returns, or the content of ``results_<date>.json``.
        samples: Samples of each task, by its name; those of tasks that were not logged are missing.
        task: Name of a task or a group.
        file: Path of the file, for errors; empty for none.

    Raises:
        InputError: It has no results of the task, or no number among them.

    Example:
        >>> scores = {"alias": "sums", "exact_match,none": 0.5, "exact_match_stderr,none": 0.5}
        >>> logged = [{"doc_id": number, "filter": "none", "exact_match": value} for number, value in enumerate((0, 1))]
        >>> found = task_result({"results": {"sums": scores}}, {"sums": logged}, "sums").metric("exact_match")
        >>> found.value, found.stderr, list(found.documents.values())
        (0.5, 0.5, [0.0, 1.0])
    """
    scores = {**results.get("results", {}), **results.get("groups", {})}.get(task)
    if not isinstance(scores, Mapping):
        known = sorted(results.get("results", {}))
        raise InputError(
            f"there are no results of the task {task!r}.",
            code="no_such_task",
            file=file,
            field="pareto.capability.tasks",
            hint=f"There are {', '.join(known[:8])}." if known else "There are none.",
        )
    leaves = list(_leaves(results.get("group_subtasks", {}), task))
    logged = [(leaf, sample) for leaf in leaves for sample in samples.get(leaf, ())]
    better = results.get("higher_is_better", {}).get(task, {})
    metrics = tuple(_metrics(scores, better, logged))
    if not metrics:
        raise InputError(
            f"the task {task!r} has no score.",
            code="no_such_metric",
            file=file,
            field="pareto.capability.tasks",
            hint="Name a task that has one; of a group without an aggregate, its tasks.",
        )
    counts = [results.get("n-samples", {}).get(leaf, {}).get("effective") for leaf in leaves]
    known_counts = [int(count) for count in counts if count is not None]
    return TaskResult(task, sum(known_counts), metrics)


def _leaves(groups: Mapping[str, Sequence[str]], task: str) -> Iterator[str]:
    below = [name for name in groups.get(task, ()) if name != task]
    if not below:
        yield task
    for name in below:
        yield from _leaves(groups, name)


def _metrics(
    scores: Mapping[str, Any], better: Mapping[str, Any], logged: Sequence[tuple[str, Mapping[str, Any]]]
) -> Iterator[MetricResult]:
    for key, value in scores.items():
        name, comma, used = key.partition(",")
        if not comma or name.endswith("_stderr") or not _is_number(value):
            continue
        stderr = scores.get(f"{name}_stderr,{used}")
        values = {
            f"{leaf}/{sample.get('doc_id')}/{str(sample.get('doc_hash', ''))[:12]}": sample.get(name)
            for leaf, sample in logged
            if sample.get("filter", "none") == used
        }
        documents = {document: float(found) for document, found in values.items() if _is_number(found)}
        # Not every metric is the mean of its documents; pairs of others would say something else.
        is_mean = bool(documents) and abs(math.fsum(documents.values()) / len(documents) - value) <= _AGREES * max(
            1.0, abs(value)
        )
        yield MetricResult(
            key,
            float(value),
            float(stderr) if _is_number(stderr) else None,
            better.get(name),
            documents if is_mean else {},
        )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
