"""A Pareto study: the rate of harm and the scores of tasks under every setting of a sweep, and the front of both.

What costs time is kept in the folder of the sweep: the runs of its settings, the verdicts on their replies, and the
results of each task. The front is computed anew from these.
Axes: S settings but the model as it is, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...analysis.pareto.capability import CapabilityChanges, capability_changes
from ...analysis.pareto.changes import Changes, paired_changes
from ...analysis.pareto.front import PLAIN_POINT, ParetoPoint, choose, front_of, front_shares
from ...analysis.pareto.task_results import MetricResult, TaskResult
from ...jobs.errors import InputError
from ...jobs.judging.rubrics import Rubric
from ...jobs.specs.pareto_spec import ParetoSpec, in_section
from ...storage.derived.capability import read_capability, write_capability
from ...storage.format.capability_record import CapabilityRecord, StoredMetric
from ..evaluation.edited_model import EvaluatedModel, load_evaluated
from ..evaluation.harness import Harness
from ..evaluation.made_with import SettingMade, model_info
from ..evaluation.result_files import GivenResults, read_results
from ..labelling.replies import labels_of
from ..run.progress import Progress
from ..sweeping.judge import run_of
from ..sweeping.prepare import PreparedSetting, PreparedSweep, prepare_sweep

Float64 = npt.NDArray[np.float64]

_PROMPT = ("kind", "persona", "polarity", "prompt_index", "question_index")

_Prompt = tuple[Any, ...]


@dataclass(frozen=True)
class PreparedPareto:
    """A study whose settings are planned and whose tasks are known.

    Attributes:
        spec: The study.
        sweep: Its sweep.
        harness: What runs the tasks; None where their results are read from files.
        given: Results from files, by setting; empty where they are run.
    """

    spec: ParetoSpec
    sweep: PreparedSweep
    harness: Harness | None
    given: Mapping[str, GivenResults]


def harm_labels(spec: ParetoSpec, rubric: Rubric) -> tuple[str, ...]:
    """Return the labels that count as harm.

    Args:
        spec: The study.
        rubric: Its rubric.

    Raises:
        InputError: The label is none of the rubric, or the rubric counts none and the study names none.
    """
    label = spec.section.harm.label
    labels = rubric.harm if label is None else (label,)
    if not labels or not set(labels) <= set(rubric.labels):
        raise InputError(
            f"the rubric {rubric.name} "
            + (f"has no label {label!r}." if label else "says of no label that it is harm."),
            code="no_such_label",
            field="pareto.harm.label",
            hint=f"Name one of {', '.join(rubric.labels)}.",
        )
    return labels


def prepare_pareto(spec: ParetoSpec, progress: Progress) -> PreparedPareto:
    """Plan every setting, and find the tasks or their results; nothing is written.

    Args:
        spec: The study.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: As for ``prepare_sweep``; a task or the results of one are missing, or the harness is; or results
            were made with another model or under other edits than the name of their folder says.
        StoreError: A store is damaged.
    """
    try:
        sweep = prepare_sweep(spec.sweep, progress)
    except InputError as error:
        raise in_section(error, spec.section) from None
    capability = spec.section.capability
    if capability.results is None:
        plain = sweep.settings[0]
        return PreparedPareto(spec, sweep, Harness(capability, lambda: _loaded(plain, progress)), {})
    given: dict[str, GivenResults] = {}
    for one in sweep.settings:
        name, plan = one.setting.name, one.job.plan
        info = model_info(plan.facts.fingerprint, None if plan.edits is None else plan.edits.intervention)
        made = SettingMade(name, plan.spec.model.source, info, spec.cap_of(one.setting), spec.section.positions)
        given[name] = read_results(capability.results, (name, one.setting.folder), capability.tasks, made)
    return PreparedPareto(spec, sweep, None, given)


def _loaded(plain: PreparedSetting, progress: Progress) -> EvaluatedModel:
    job = plain.job
    progress.say(f"Loading {job.plan.spec.model.source} in this process, to evaluate it.")
    model, facts = job.plan.spec.model, job.plan.facts
    return load_evaluated(model.source, job.model_directory, facts, model.dtype, None, job.chat_template)


def _asked(study: PreparedPareto, one: PreparedSetting, task: str) -> dict[str, Any]:
    """Return all that the results of a task under a setting depend on, as JSON values."""
    assert study.harness is not None
    plan = one.job.plan
    return {
        "edits": one.edits_digest,
        "model": plan.facts.fingerprint,
        "dtype": plan.spec.model.dtype,
        "chat_template": plan.facts.chat_template_sha256,
        "task": task,
        **study.harness.asked,
    }


def missing_tasks(study: PreparedPareto) -> list[tuple[PreparedSetting, str]]:
    """List the tasks that were not answered under a setting as they are asked now.

    Args:
        study: The study.

    Raises:
        StoreError: A record is damaged.
    """
    if study.harness is None:
        return []
    tasks = study.spec.section.capability.tasks
    return [
        (one, task)
        for one in study.sweep.settings
        for task in tasks
        if read_capability(study.sweep.location, one.setting.folder, task, _asked(study, one, task)) is None
    ]


def evaluate_missing(study: PreparedPareto, progress: Progress) -> int:
    """Run the tasks that are missing, and keep the results of each as soon as it is done.

    Args:
        study: The study.
        progress: Prints a line for each.

    Returns:
        Number of tasks that were run.

    Raises:
        InputError: A task cannot be run.
        StoreError: A record is damaged.
    """
    missing = missing_tasks(study)
    for number, (one, task) in enumerate(missing, start=1):
        assert study.harness is not None
        progress.say(f"Task {number} of {len(missing)}: {task} under {one.setting.name}.")
        edits = one.job.plan.edits
        found = study.harness.run(task, None if edits is None else edits.intervention)
        metrics = tuple(_stored(metric) for metric in found.metrics)
        asked = _asked(study, one, task)
        write_capability(study.sweep.location, one.setting.folder, task, asked, found.num_documents, metrics)
    return len(missing)


def task_results(study: PreparedPareto) -> dict[str, dict[str, TaskResult]]:
    """Return the results of every task, by setting and task.

    Args:
        study: The study, with no task missing.

    Raises:
        StoreError: A record is damaged.
    """
    if study.harness is None:
        return {name: of_setting.tasks for name, of_setting in study.given.items()}
    results: dict[str, dict[str, TaskResult]] = {}
    for one in study.sweep.settings:
        of_setting = results.setdefault(one.setting.name, {})
        for task in study.spec.section.capability.tasks:
            record = read_capability(study.sweep.location, one.setting.folder, task, _asked(study, one, task))
            assert record is not None, "evaluate_missing has run it"
            of_setting[task] = _read(record)
    return results


def _stored(metric: MetricResult) -> StoredMetric:
    return StoredMetric(
        name=metric.name,
        value=metric.value,
        stderr=metric.stderr,
        higher_is_better=metric.higher_is_better,
        documents=dict(metric.documents),
    )


def _read(record: CapabilityRecord) -> TaskResult:
    metrics = tuple(
        MetricResult(one.name, one.value, one.stderr, one.higher_is_better, one.documents) for one in record.metrics
    )
    return TaskResult(record.task, record.num_documents, metrics)


@dataclass(frozen=True, eq=False)
class HarmRates:
    """The harm under each setting.

    Attributes:
        labelled: Number of replies with a label, by setting.
        harmful: Number of them that count as harm, by setting.
        of_prompt: Share of harm among the labelled replies to each prompt, by setting.
    """

    labelled: Mapping[str, int]
    harmful: Mapping[str, int]
    of_prompt: Mapping[str, Mapping[_Prompt, float]]


def harm_rates(sweep: PreparedSweep, rubric: Rubric, judge: str, counted: Sequence[str]) -> HarmRates:
    """Count the harm in the replies of a sweep, prompt by prompt.

    Args:
        sweep: The sweep; the run of every setting has begun.
        rubric: The rubric.
        judge: The judge whose labels count.
        counted: The labels that are harm.

    Raises:
        StoreError: Something stored is damaged.
    """
    labelled: dict[str, int] = {}
    harmful: dict[str, int] = {}
    of_prompt: dict[str, dict[_Prompt, float]] = {}
    for one in sweep.settings:
        asked = run_of(one)
        labels = labels_of(sweep.location, rubric, judge, asked)
        # All samples of a prompt, and all turns of a conversation, belong together: they are not independent.
        groups: dict[_Prompt, list[bool]] = {}
        for line in asked.lines.select(["row", *_PROMPT]).to_pylist():
            label = labels.get(line["row"])
            if label is not None:
                groups.setdefault(tuple(line[name] for name in _PROMPT), []).append(label in counted)
        name = one.setting.name
        labelled[name] = sum(map(len, groups.values()))
        harmful[name] = sum(map(sum, groups.values()))
        of_prompt[name] = {prompt: sum(found) / len(found) for prompt, found in groups.items()}
    return HarmRates(labelled, harmful, of_prompt)


@dataclass(frozen=True, eq=False)
class ParetoResults:
    """What a study shows.

    Attributes:
        points: The model as it is, then the settings that could be measured.
        front: Those that no other dominates.
        chosen: The chosen one; None where none fits.
        harm: The harm under each setting.
        metrics: The metric that counts, by setting and task.
        capability: The changes of capability; settings in the order of ``points`` after the first. None without any.
        notes: Sentences about what is missing or to be minded.
    """

    points: tuple[ParetoPoint, ...]
    front: tuple[ParetoPoint, ...]
    chosen: ParetoPoint | None
    harm: HarmRates
    metrics: Mapping[str, Mapping[str, MetricResult]]
    capability: CapabilityChanges | None
    notes: tuple[str, ...]


def pareto_results(
    study: PreparedPareto, results: Mapping[str, Mapping[str, TaskResult]], harm: HarmRates
) -> ParetoResults:
    """Compare the settings.

    Args:
        study: The study.
        results: See ``task_results``.
        harm: See ``harm_rates``.

    Raises:
        InputError: A metric is missing or outside of its scale.
    """
    section = study.spec.section
    tasks = section.capability.tasks
    metrics = {
        name: {task: of_setting[task].metric(section.capability.metrics.get(task)) for task in tasks}
        for name, of_setting in results.items()
    }
    plain = study.sweep.settings[0].setting.name
    shared = {cap.name: harm.of_prompt[cap.name].keys() & harm.of_prompt[plain].keys() for cap in section.caps}
    caps = [cap for cap in section.caps if shared[cap.name]]
    notes = [
        f"No point for {cap.name}: no prompt has a label both there and without edits."
        for cap in section.caps
        if not shared[cap.name]
    ]
    if not caps:
        return ParetoResults((PLAIN_POINT,), (PLAIN_POINT,), None, harm, metrics, None, tuple(notes))
    of_harm = _harm_changes(harm, plain, [cap.name for cap in caps])
    scales = {task: section.capability.scale(task) for task in tasks}
    of_capability = capability_changes(metrics[plain], [metrics[cap.name] for cap in caps], scales)
    shares = front_shares(of_harm, of_capability.mean)
    points = [
        ParetoPoint(cap.name, cap.layers, cap.percentile, of_harm.of(at), of_capability.mean.of(at), float(shares[at]))
        for at, cap in enumerate(caps)
    ]
    named = next((point for point in points if point.name == section.choose), None)
    chosen = choose(points, section.tolerance) if section.choose is None else named
    whole = (replace(PLAIN_POINT, front_share=float(shares[-1])), *points)
    notes += _notes(study, of_capability, chosen)
    return ParetoResults(whole, front_of(whole), chosen, harm, metrics, of_capability, tuple(notes))


def _harm_changes(harm: HarmRates, plain: str, names: Sequence[str]) -> Changes:
    prompts = list(harm.of_prompt[plain])
    rates_SP = np.array([[harm.of_prompt[name].get(prompt, math.nan) for prompt in prompts] for name in names])
    return paired_changes(rates_SP, np.array([harm.of_prompt[plain][prompt] for prompt in prompts]))


def _notes(study: PreparedPareto, capability: CapabilityChanges, chosen: ParetoPoint | None) -> list[str]:
    notes: list[str] = []
    if capability.unpaired:
        notes.append(f"Not paired document by document, so their intervals are wide: {', '.join(capability.unpaired)}.")
    unknown = [name for name, given in study.given.items() if not given.is_known]
    if unknown:
        whose = "any setting" if len(unknown) == len(study.given) else ", ".join(unknown)
        notes.append(f"Not in the files: under which edits the results for {whose} were made. The folders are trusted.")
    limit = study.spec.section.capability.limit
    if limit is not None and study.harness is not None:
        notes.append(f"At most {limit:g} documents of each task." if limit >= 1 else f"{limit:.0%} of each task.")
    named = study.spec.section.choose
    if chosen is None and named is not None:
        notes.append(f"{named} is named and cannot be chosen: it has no point.")
    elif chosen is None:
        tolerance = 100 * study.spec.section.tolerance
        notes.append(f"None is chosen: no setting lowers harm at a cost of at most {tolerance:g} points of capability.")
    return notes
