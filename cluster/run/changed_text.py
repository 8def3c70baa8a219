"""Find which text of a run is another one in a plan, for the message that refuses the plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from ...jobs.errors import StoreError
from ...jobs.plan import Plan
from ...jobs.work.units import WorkUnit
from ...storage.format.records import CommitRecord
from ...storage.locations.location import Location
from ...storage.run.commits import PARALLEL_READS, committed_units, read_commits, read_rollouts

_COLUMNS = ["question_index", "system_prompt", "question"]


def changed_text(plan: Plan, planned: Iterable[WorkUnit], location: Location) -> str | None:
    """Name the first prompt or question that a committed rollout has with another text than a plan.

    Args:
        plan: The plan, whose source has the texts of today.
        planned: Units of the run.
        location: The run's store.

    Returns:
        Such as ``question 3 of role 'pirate'``; None where no committed rollout tells.
    """
    committed = committed_units(location)
    units = {unit.unit_id: unit for unit in _each_text_once(planned) if unit.unit_id in committed}
    try:
        commits = read_commits(location, list(units))
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            for commit, table in zip(commits, pool.map(lambda one: _texts(location, one), commits), strict=True):
                found = _first_changed(plan, units[commit.manifest.unit_id], table)
                if found is not None:
                    return found
    except StoreError:
        # The plan is refused in any case, and ``verify`` is the command that reports damage.
        return None
    return None


def _each_text_once(units: Iterable[WorkUnit]) -> Iterator[WorkUnit]:
    """Leave out units all of whose prompts and questions were in units before."""
    seen: set[tuple[object, ...]] = set()
    for unit in units:
        texts = {(unit.kind, unit.persona, unit.polarity, unit.prompt_index)}
        texts |= {(unit.kind, unit.persona, question) for question in unit.question_indices}
        if not texts <= seen:
            seen |= texts
            yield unit


def _texts(location: Location, commit: CommitRecord) -> pa.Table:
    return read_rollouts(location, commit, _COLUMNS)


def _first_changed(plan: Plan, unit: WorkUnit, table: pa.Table) -> str | None:
    lines: list[dict[str, Any]] = table.to_pylist()
    for request, line in zip(plan.requests(unit).first(unit), lines, strict=True):
        owner = f"{unit.kind} {unit.persona!r}"
        if request.system_prompt != line["system_prompt"]:
            return f"prompt {unit.prompt_index} ({unit.polarity}) of {owner}"
        if request.question != line["question"]:
            return f"question {line['question_index']} of {owner}"
    return None
