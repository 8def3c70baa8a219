"""The change of capability under settings, from what lm-evaluation-harness says of each task. Pure.

Axes: S settings, P documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...jobs.errors import InputError
from .changes import Changes, mean_changes, normal_changes, paired_changes
from .task_results import MetricResult

MetricOf = Mapping[str, MetricResult]
"""The metric that counts, by task."""


@dataclass(frozen=True, eq=False)
class CapabilityChanges:
    """The changes of the mean score of several tasks.

    Attributes:
        mean: Of the mean over the tasks, each of which counts the same.
        of_task: Of each task, by its name.
        unpaired: Tasks of which only standard errors are known, so that their intervals are wider than pairs would be.
    """

    mean: Changes
    of_task: Mapping[str, Changes]
    unpaired: tuple[str, ...]

    def as_dict(self, setting: int) -> dict[str, Any]:
        """Build the object that ``--json`` prints of the tasks of one setting."""
        changes = {task: changes.of(setting) for task, changes in self.of_task.items()}
        return {task: {"value": one.value, "low": one.low, "high": one.high} for task, one in changes.items()}


def capability_changes(plain: MetricOf, settings: Sequence[MetricOf], scales: Mapping[str, float]) -> CapabilityChanges:
    """Compare the scores under settings with those of the model as it is.

    Args:
        plain: The metrics of the model as it is.
        settings: Those under each of S settings, of the same tasks.
        scales: Highest value of each task's metric; scores are divided by it.

    Returns:
        The changes, as parts of the scale. They are paired document by document where every document is logged, and
        otherwise have the standard errors of the harness, as if the scores were independent.

    Raises:
        InputError: A score is outside of its scale, or neither documents nor a standard error are known.
    """
    of_task: dict[str, Changes] = {}
    unpaired: list[str] = []
    for number, (task, before) in enumerate(plain.items()):
        after = [of_setting[task] for of_setting in settings]
        for metric in (before, *after):
            _refuse_beyond(task, metric, scales[task])
        # Draws of different tasks must not go together, so each has a seed of its own.
        if before.documents and all(metric.documents.keys() == before.documents.keys() for metric in after):
            of_task[task] = _paired(before, after, scales[task], seed=1 + number)
        else:
            unpaired.append(task)
            of_task[task] = _by_errors(task, before, after, scales[task], seed=1 + number)
    return CapabilityChanges(mean_changes(list(of_task.values())), of_task, tuple(unpaired))


def _paired(before: MetricResult, after: Sequence[MetricResult], scale: float, seed: int) -> Changes:
    documents = list(before.documents)
    rates_SP = np.array([[metric.documents[name] for name in documents] for metric in after]).reshape(len(after), -1)
    plain_P = np.array([before.documents[name] for name in documents])
    return paired_changes(rates_SP / scale, plain_P / scale, seed=seed)


def _by_errors(task: str, before: MetricResult, after: Sequence[MetricResult], scale: float, seed: int) -> Changes:
    errors = [metric.stderr for metric in (before, *after)]
    if None in errors:
        raise InputError(
            f"{before.name} of the task {task} has no standard error, and its documents are not logged.",
            code="no_standard_error",
            field=f"pareto.capability.metrics.{task}",
            hint="Log the documents (--log_samples), ask more than one, or name another metric.",
        )
    squares = [float(error or 0.0) ** 2 for error in errors]
    values_S = np.array([metric.value - before.value for metric in after])
    return normal_changes(
        values_S / scale, np.array([math.sqrt(squares[0] + one) for one in squares[1:]]) / scale, seed=seed
    )


def _refuse_beyond(task: str, metric: MetricResult, scale: float) -> None:
    if not 0 <= metric.value <= scale:
        raise InputError(
            f"{metric.name} of the task {task} is {metric.value:g}, which is not from 0 to {scale:g}.",
            code="beyond_scale",
            field=f"pareto.capability.scales.{task}",
            hint="Give the highest value that it can have, such as 100.",
        )
