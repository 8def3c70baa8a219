"""Run tasks of lm-evaluation-harness in this process, on one loaded model under one setting after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...analysis.pareto.task_results import TaskResult, task_result
from ...jobs.errors import InputError, closest
from ...jobs.files.user_paths import expand_home, is_directory
from ...jobs.interventions import Intervention
from ...jobs.specs.pareto_spec import CapabilitySection
from .edited_model import EvaluatedModel, refuse_missing_lm_eval
from .lm_model import lm_class

_SEED = 1234
"""Seed of the examples that are shown before a question, as the harness has it by default."""

_INCLUDE_FIELD = "pareto.capability.include_path"


class Harness:
    """The tasks that a study asks, found and checked; the model is loaded when the first of them is run.

    Args:
        section: Which tasks, and how they are asked.
        load: Loads the model.

    Raises:
        InputError: The harness is not installed, a task is not known, or the directory of tasks is not there.
    """

    def __init__(self, section: CapabilitySection, load: Callable[[], EvaluatedModel]) -> None:
        try:
            from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise refuse_missing_lm_eval(error) from error
        self._section = section
        self._load = load
        self._lm: Any = None
        self._files = _digest_of_folder(section.include_path)
        self._manager: Any = _manager(TaskManager, section)
        for number, task in enumerate(section.tasks):
            if task not in self._manager.all_tasks:
                raise InputError(
                    f"lm-evaluation-harness has no task {task!r}.",
                    code="no_such_task",
                    field=f"pareto.capability.tasks.{number}",
                    hint=closest(task, self._manager.all_tasks) or "persona-atlas lm-eval ls tasks lists them.",
                )

    @property
    def asked(self) -> dict[str, Any]:
        """What the results depend on besides the task, the model and the edits, as JSON values."""
        from importlib.metadata import version

        section = self._section
        return {
            "lm_eval": version("lm_eval"),
            "limit": section.limit,
            "num_fewshot": section.num_fewshot,
            "apply_chat_template": section.apply_chat_template,
            "task_files": self._files,
        }

    def run(self, task: str, edits: Intervention | None) -> TaskResult:
        """Run one task.

        Args:
            task: Its name.
            edits: The edits; None for the model as it is.

        Raises:
            InputError: The model cannot be loaded, or the task cannot be run, as where its data cannot be fetched.
        """
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

        section = self._section
        # What the harness and its data sets print belongs beside the log, and not into the output of a command.
        with redirect_stdout(sys.stderr):
            if self._lm is None:
                self._lm = lm_class().of(self._load(), batch_size=section.batch_size)
            self._lm.edits = edits
            try:
                results: Mapping[str, Any] = simple_evaluate(
                    model=self._lm,
                    tasks=[task],
                    num_fewshot=section.num_fewshot,
                    limit=section.limit,
                    apply_chat_template=section.apply_chat_template,
                    task_manager=self._manager,
                    log_samples=True,
                    fewshot_random_seed=_SEED,
                )
            except (OSError, ImportError, ValueError, KeyError) as error:
                raise InputError(
                    f"the task {task} cannot be run: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                    code="task_failed",
                    field="pareto.capability.tasks",
                    hint="Public tasks fetch their data from the hub, and some need more packages, as lm-eval[ifeval].",
                ) from error
        return task_result(results, results.get("samples", {}), task)


def _manager(manager: Callable[..., Any], section: CapabilitySection) -> Any:
    """Find the tasks; the harness's own, which takes seconds, only where one of them is not in the user's directory."""
    if section.include_path is not None:
        own = manager(include_path=section.include_path, include_defaults=False)
        if set(section.tasks) <= set(own.all_tasks):
            return own
    return manager(include_path=section.include_path)


def _digest_of_folder(folder: str | None) -> str | None:
    """Hash the files of a directory of tasks, so that a task that was changed is another task."""
    if folder is None:
        return None
    path = Path(expand_home(folder, _INCLUDE_FIELD))
    if not is_directory(path, _INCLUDE_FIELD):
        raise InputError(
            f"{folder} is no directory.", code="missing_file", field=_INCLUDE_FIELD, hint="Name a directory with tasks."
        )
    digest = sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            name, data = str(file.relative_to(path)).encode(), file.read_bytes()
            digest.update(b"%d %s %d " % (len(name), name, len(data)) + data)
    return digest.hexdigest()
