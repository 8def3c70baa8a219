"""The texts of a run, for a job that reads them again: units from commit records, texts a unit at a time.

Implements ``StoredTexts`` of ``jobs/sources/replay_source.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from ...jobs.errors import InputError
from ...jobs.sources.stored_conversations import StoredRow, StoredUnit
from ...jobs.work.units import WorkUnit
from ..format.planned_units import read_units
from ..format.records import CommitRecord
from ..run.commits import committed_units, read_commits, read_rollouts
from .run import Run

FIELD = "conversations.texts_of"
"""The field of a spec that names the store."""

_COLUMNS = [
    "system_prompt",
    "question",
    "response",
    "prompt_token_ids",
    "response_token_ids",
    "num_content_tokens",
]


class TextsOfRun:
    """The committed texts of a run.

    Args:
        run: The run; units that are committed after the first use do not count.
        planned: Units by id of the job that reads these texts, as it was planned when the run may have had fewer: those
            that it has gained since are left out, and the rest keep their numbers. None for a job that is not planned.

    Raises:
        InputError: Its texts are prompts without an answer.
    """

    def __init__(self, run: Run, planned: Mapping[str, WorkUnit] | None = None) -> None:
        if run.record.of_prompts:
            raise InputError(
                f"the run at {run.url} is one of prompts without an answer, so it has no responses to read.",
                code="no_responses",
                field=FIELD,
                hint="Name the store of a run with responses.",
            )
        self._run = run
        self._planned = planned

    @property
    def url(self) -> str:
        """Directory or URL of the run's store."""
        return self._run.url

    @property
    def num_planned(self) -> int:
        """Number of planned units."""
        return self._run.record.num_units

    @property
    def num_gained(self) -> int:
        """Number of committed units that are left out, since the job was planned without them."""
        return sum(self._is_gained(commit) for commit in self._commits.values())

    @property
    def units(self) -> tuple[StoredUnit, ...]:
        """The committed units, in the order of the run's plan, without those that the run has gained since.

        Raises:
            StoreError: A record is missing or damaged.
        """
        return self._units

    def read(self, unit_id: str) -> Sequence[StoredRow]:
        """Read the rows of a unit with their texts and token ids; see ``StoredTexts.read``.

        Raises:
            StoreError: The texts are missing or damaged.
        """
        columns = [*_COLUMNS, *(["extra"] if self._run.record.of_conversations else [])]
        table = read_rollouts(self._run.location, self._commits[unit_id], columns)
        return [
            StoredRow(
                system_prompt=line["system_prompt"],
                question=line["question"],
                response=line["response"],
                prompt_token_ids=tuple(line["prompt_token_ids"]),
                content_token_ids=tuple(line["response_token_ids"][: line["num_content_tokens"]]),
                extra=line.get("extra") or "",
            )
            for line in table.to_pylist()
        ]

    @cached_property
    def _units(self) -> tuple[StoredUnit, ...]:
        return tuple(self._numbered())

    @cached_property
    def _commits(self) -> dict[str, CommitRecord]:
        committed = committed_units(self._run.location)
        planned = [unit_id for unit_id in read_units(self._run.location, self._run.record) if unit_id in committed]
        return dict(zip(planned, read_commits(self._run.location, planned), strict=True))

    def _numbered(self) -> Iterator[StoredUnit]:
        """Give the rows of single questions a conversation each, counted over the run as it was planned to be read."""
        count = 0
        for commit in self._commits.values():
            if self._is_gained(commit):
                continue
            manifest = commit.manifest
            unit = manifest.unit
            if unit.conversation_indices is None:
                known = (self._planned or {}).get(unit.unit_id)
                start = count if known is None else _first_index(unit, known)
                count = start + unit.num_rollouts
                indices = tuple(range(start, count))
                unit = replace(unit, turn_indices=(1,) * unit.num_rollouts, conversation_indices=indices)
            yield StoredUnit(unit, manifest.prompt_tokens, manifest.content_tokens, manifest.texts.sha256)

    def _is_gained(self, commit: CommitRecord) -> bool:
        """Whether a unit was committed after the job was planned; of empty responses alone no unit is ever planned."""
        if self._planned is None or commit.manifest.unit.unit_id in self._planned:
            return False
        return any(commit.manifest.content_tokens)


def _first_index(unit: WorkUnit, part: WorkUnit) -> int:
    """Return the conversation of a unit's first row, from that of the first row that a planned unit reads of it."""
    assert part.conversation_indices is not None
    rows = list(zip(unit.question_indices, unit.sample_indices, strict=True))
    return part.conversation_indices[0] - rows.index((part.question_indices[0], part.sample_indices[0]))
