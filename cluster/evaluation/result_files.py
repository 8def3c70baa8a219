"""Read the files that lm-evaluation-harness writes with ``--output_path``: results, and samples if they are logged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...analysis.pareto.task_results import TaskResult, task_result
from ...jobs.errors import InputError
from ...jobs.files.user_paths import expand_home
from ...jobs.machine_faults import refuse_machine_fault
from .made_with import RESULTS_FIELD, SettingMade


@dataclass(frozen=True)
class GivenResults:
    """Results of a setting that were read from files.

    Attributes:
        tasks: The results by task.
        is_known: Whether the files say under which edits they were made.
    """

    tasks: dict[str, TaskResult]
    is_known: bool


def read_results(folder: str, names: tuple[str, ...], tasks: list[str], made: SettingMade) -> GivenResults:
    """Read the results of some tasks under one setting. Of several files the last that has a task counts.

    Args:
        folder: Directory with a folder for each setting.
        names: Names that the setting's folder may have.
        tasks: The tasks.
        made: How they must have been made.

    Returns:
        The results, in the order of ``tasks``.

    Raises:
        InputError: The folder or a task is missing, a file is not one of the harness's, or its results were made with
            another model or under other edits.
    """
    root = Path(expand_home(folder, RESULTS_FIELD))
    found = next((root / name for name in names if (root / name).is_dir()), None)
    if found is None:
        raise InputError(
            f"{root} has no folder {' or '.join(dict.fromkeys(names))}.",
            code="missing_file",
            field=RESULTS_FIELD,
            hint="It has the --output_path of lm_eval for each setting, under the name of the setting.",
        )
    files = sorted(found.rglob("results*.json"), key=lambda file: file.name)
    if not files:
        raise InputError(
            f"{found} has no results of lm_eval.",
            code="missing_file",
            field=RESULTS_FIELD,
            hint="They are results_<date>.json.",
        )
    read = [(file, _object(file)) for file in files]
    chosen: dict[str, TaskResult] = {}
    is_known = True
    for task in tasks:
        having = [(file, content) for file, content in read if task in _tasks_of(content)]
        file, content = having[-1] if having else read[-1]
        config = content.get("config")
        is_known &= made.check(config if isinstance(config, dict) else {}, str(file))
        chosen[task] = task_result(content, _samples(file), task, str(file))
    return GivenResults(chosen, is_known)


def _tasks_of(content: dict[str, Any]) -> set[str]:
    return {*content.get("results", {}), *content.get("groups", {})}


def _samples(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the samples that were logged beside a file of results: they have its date in their names."""
    date = results.stem.removeprefix("results").lstrip("_")
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(results.parent.glob(f"samples_*_{date}.jsonl")):
        task = file.stem.removeprefix("samples_").removesuffix(f"_{date}")
        found[task] = [_parsed(line, file) for line in _text(file).splitlines() if line.strip()]
    return found


def _object(file: Path) -> dict[str, Any]:
    return _parsed(_text(file), file)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        refuse_machine_fault(error)
        raise InputError(f"cannot be read: {error}.", code="unreadable_file", file=str(file)) from error


def _parsed(text: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            "holds no JSON object.", code="bad_results", file=str(file), hint="lm_eval writes one with --output_path."
        )
    return found
