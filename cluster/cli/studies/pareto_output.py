"""What a Pareto study prints and draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....analysis.pareto.front import ParetoPoint
from ....analysis.pareto.picture import ParetoPicture, write_picture
from ....analysis.sweeping.intervals import wilson_interval
from ...judging.judge_run import Judging
from ...studies.pareto import ParetoResults, PreparedPareto
from ...sweeping.run import SweepOutcome
from .. import output
from ..scores.judge_options import print_judging


@dataclass(frozen=True)
class ParetoEnding:
    """How the parts of the command ended.

    Attributes:
        outcome: The units of the sweep.
        judging: The judging; None where nobody judged now.
        evaluated: Number of tasks that were run now.
        judge: Name of the judge whose labels count.
        counted: The labels that are harm.
        picture: File of the picture; None for none.
        capping: The capping file; None for none.
    """

    outcome: SweepOutcome
    judging: Judging | None
    evaluated: int
    judge: str
    counted: tuple[str, ...]
    picture: Path | None
    capping: Path | None


def draw_pareto(study: PreparedPareto, results: ParetoResults, judged: str, path: Path) -> None:
    """Draw a study.

    Args:
        study: The study.
        results: What it shows.
        judged: Which labels are harm, and who gave them.
        path: The file.

    Raises:
        InputError: It cannot be written.
    """
    spec = study.spec
    tasks = ", ".join(spec.section.capability.tasks)
    tolerance = spec.section.tolerance if spec.section.choose is None else None
    notes = [
        f"Capability: mean of {tasks}. Bars: intervals of 95 % over prompts and over documents. Labels p0.25 and so on "
        "count percentiles of the projection on minus the axis.",
        *results.notes,
    ]
    title = f"{spec.sweep.job.model.display_name}: harm ({judged}) against capability"
    write_picture(ParetoPicture(results.points, results.front, results.chosen, tolerance, title, notes), path)


def pareto_as_dict(study: PreparedPareto, results: ParetoResults, ending: ParetoEnding) -> dict[str, Any]:
    """Build the object that ``--json`` prints.

    Args:
        study: The study.
        results: What it shows.
        ending: How the parts of the command ended.
    """
    front = {point.name for point in results.front}
    outcome = ending.outcome
    points = [
        point.as_dict(is_on_front=point.name in front) | _measured(results, point, number)
        for number, point in enumerate(results.points)
    ]
    return {
        "state": "SUCCEEDED" if outcome.is_complete else "FAILED",
        "store": study.sweep.location.url,
        "units_planned": outcome.planned,
        "units_done": outcome.done,
        "units_worked": outcome.worked,
        "judging": None if ending.judging is None else ending.judging.as_dict(),
        "tasks_evaluated": ending.evaluated,
        "rubric": study.spec.section.harm.rubric,
        "harm_labels": list(ending.counted),
        "judge": ending.judge,
        "points": points,
        "front": [point.name for point in results.front],
        "chosen": None if results.chosen is None else results.chosen.name,
        "tolerance": study.spec.section.tolerance if study.spec.section.choose is None else None,
        "notes": list(results.notes),
        "failures": [
            {"setting": name, "unit_id": failure.unit_id, "attempts": failure.attempt, "error": failure.message}
            for name, one in outcome.outcomes.items()
            for failure in one.failures
        ],
        "png": None if ending.picture is None else str(ending.picture),
        "capping_file": None if ending.capping is None else str(ending.capping),
    }


def _measured(results: ParetoResults, point: ParetoPoint, number: int) -> dict[str, Any]:
    labelled, harmful = results.harm.labelled[point.name], results.harm.harmful[point.name]
    low, high = wilson_interval(harmful, labelled)
    changes = {} if point.is_plain or results.capability is None else results.capability.as_dict(number - 1)
    tasks = {
        task: {"metric": metric.name, "score": metric.value, "stderr": metric.stderr, "change": changes.get(task)}
        for task, metric in results.metrics[point.name].items()
    }
    rate = harmful / labelled if labelled else None
    return {"harm": {"labelled": labelled, "count": harmful, "rate": rate, "low": low, "high": high}, "tasks": tasks}


def print_pareto(study: PreparedPareto, results: ParetoResults, ending: ParetoEnding) -> None:
    """Print what a study shows; arguments as for ``pareto_as_dict``."""
    tasks = study.spec.section.capability.tasks
    output.table(
        f"Harm ({', '.join(ending.counted)}, judge {ending.judge}) and capability",
        ["setting", "n", "harm", "change of harm", *tasks, "change of capability", "front", "on it"],
        [_line(results, point, tasks) for point in results.points],
    )
    output.text(
        "Changes against the model as it is, in points of 100, with intervals of 95 % over prompts and documents; "
        "on it: share of the bootstrap samples in which the setting is on the front."
    )
    for note in results.notes:
        output.text(note)
    if results.chosen is not None:
        section = study.spec.section
        why = (
            f"at a cost of at most {100 * section.tolerance:g} points" if section.choose is None else "as the spec says"
        )
        output.text(f"Chosen: {results.chosen.name}, {why}.")
    if ending.judging is not None:
        print_judging(ending.judge, ending.judging, "label")
    for name, one in ending.outcome.outcomes.items():
        for failure in one.failures:
            output.text(f"Failed under {name}: {failure.unit_id}, {failure.message}")
    output.text(f"Units: {ending.outcome.done} of {ending.outcome.planned} committed")
    for what, path in (("Picture", ending.picture), ("Capping file", ending.capping)):
        if path is not None:
            output.text(f"{what}: {path}")


def _line(results: ParetoResults, point: ParetoPoint, tasks: list[str]) -> list[str]:
    labelled, harmful = results.harm.labelled[point.name], results.harm.harmful[point.name]
    is_on = any(point.name == one.name for one in results.front)
    scores = [f"{results.metrics[point.name][task].value:.3f}" for task in tasks]
    chosen = results.chosen is not None and point.name == results.chosen.name
    return [
        point.name,
        str(labelled),
        f"{harmful / labelled:.1%}" if labelled else "-",
        "-" if point.is_plain else _change(point.harm.value, point.harm.low, point.harm.high),
        *scores,
        "-" if point.is_plain else _change(point.capability.value, point.capability.low, point.capability.high),
        ("chosen" if chosen else "yes") if is_on else ("no, chosen" if chosen else "no"),
        "-" if point.front_share != point.front_share else f"{point.front_share:.0%}",
    ]


def _change(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
