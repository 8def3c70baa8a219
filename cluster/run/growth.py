"""Compare a plan with the run in its store: the same run, more of it, or another. Reads the store, writes nothing.

A run may gain rollouts. What it has keeps its addresses, texts, seeds and units, and all that a number depends on stays
as it was when the run was begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...jobs.errors import InputError
from ...jobs.plan import Plan
from ...jobs.specs.differences import first_difference, first_obstacle, reason_against
from ...jobs.specs.spec import JobSpec
from ...jobs.wording import count_of
from ...jobs.work.added_units import BlockRoom, first_left_out, units_to_add
from ...jobs.work.addresses import RolloutAddress
from ...jobs.work.units import WorkUnit
from ...storage.format.additions import AdditionRecord
from ...storage.format.planned_units import read_units
from ...storage.format.records import RunRecord
from ...storage.locations.location import Location
from ...storage.run.run_store import check_same_run, other_edits, read_run_record
from .changed_text import changed_text


@dataclass(frozen=True)
class Growth:
    """What a job adds to the run in its store.

    Attributes:
        number: Number of the addition, from 1.
        grown_from: Digest of the run's plan before it.
        added: The plan of what is added: its units are those that the run lacks.
        whole: The plan of the run since, with the units as they are stored and the row blocks of the run.
        url: The store.
    """

    number: int
    grown_from: str
    added: Plan
    whole: Plan
    url: str

    @property
    def units_before(self) -> int:
        """Number of units that the run has without this addition."""
        return len(self.whole.units) - len(self.added.units)

    @property
    def rollouts_before(self) -> int:
        """Number of rollouts that the run has without this addition."""
        return self.whole.num_rollouts - self.added.num_rollouts

    def __str__(self) -> str:
        """Say what is added, in a sentence."""
        return (
            f"Addition {self.number} to the run at {self.url}: {count_of(len(self.added.units), 'unit')} with "
            f"{count_of(self.added.num_rollouts, 'rollout')}, besides the {count_of(self.units_before, 'unit')} with "
            f"{count_of(self.rollouts_before, 'rollout')} that are planned already."
        )

    def record(
        self, *, units_sha256: str, rows: dict[str, int], versions: dict[str, str], created_at: str
    ) -> AdditionRecord:
        """Make the sealed record of the addition.

        Args:
            units_sha256: SHA-256 of the encoded list of the added units.
            rows: Rows of the whole run whose texts are not taken as they are.
            versions: Software that makes the addition.
            created_at: ISO 8601, in UTC.
        """
        return AdditionRecord.sealed(
            number=self.number,
            grown_from=self.grown_from,
            plan_digest=self.whole.digest,
            spec=self.whole.spec,
            num_units=len(self.added.units),
            units_sha256=units_sha256,
            num_rollouts=self.added.num_rollouts,
            rows=rows,
            versions=versions,
            created_at=created_at,
        )


def fit_to_run(plan: Plan, record: RunRecord, location: Location, *, grow: bool) -> tuple[Plan, Growth | None]:
    """Return the plan by which a job continues the run in its store, or grows it.

    Args:
        plan: The plan of the job's spec, made as if the store were empty.
        record: The run's record.
        location: The run's store.
        grow: Whether the job may add to the run.

    Returns:
        The plan with the units that the run has, or has with the addition; and the addition, None where the run has
        everything already.

    Raises:
        InputError: The job is another run's, would have to add to it without ``grow``, or cannot be added to it; names
            the field, and the reason or the difference.
        StoreError: A list of planned units is damaged.
    """
    is_known = bool(plan.facts.fingerprint)
    if not is_known:
        plan = replace(plan, facts=replace(plan.facts, fingerprint=record.model.fingerprint))
    if not record.additions and plan.digest == record.plan_digest:
        return plan, None
    try:
        whole, growth = _compared(plan, record, location)
    except _OtherRunError as other:
        if not grow and not record.additions:
            check_same_run(record, plan, location.url)
        code = "cannot_grow" if grow else "other_run"
        raise InputError(other.message, code=code, field=other.field, hint=_HINT) from None
    if growth is not None and not grow:
        raise _without_leave(growth, record, plan)
    return whole, growth


def run_to_grow(location: Location, spec: JobSpec) -> RunRecord:
    """Read the record of the run that a job is to add to.

    Args:
        location: The store of the job.
        spec: The job.

    Raises:
        InputError: There is no run, or it is of a kind that cannot grow: one of the texts of another run, or a study of
            harm after drift.
        StoreError: Its record is damaged.
    """
    if spec.replays:
        raise InputError(
            "is a run of the texts of another run, and is not added to.",
            code="cannot_grow",
            field="conversations.texts_of",
            hint="Give the texts that the other run has gained a store.url of their own.",
        )
    if spec.harm is not None:
        raise InputError(
            "is a study to which nothing can be added: with more roles other requests would follow.",
            code="cannot_grow",
            field="harm",
            hint="Give this job its own store.url.",
        )
    record = read_run_record(location)
    if record is None:
        raise InputError(
            f"there is no run at {location.url} to add to.",
            code="no_run",
            field="store.url",
            hint="Check it, or leave out --grow (in Python grow) to begin a run there.",
        )
    return record


_HINT = "Give this job its own store.url, or restore the field."


class _OtherRunError(Exception):
    """Why a plan is not more of a run."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


def _compared(plan: Plan, record: RunRecord, location: Location) -> tuple[Plan, Growth | None]:
    """Compare, from what takes a moment to what takes longer."""
    begun, url = record.spec, location.url
    other = other_edits(record, plan)
    if other is not None:
        raise _OtherRunError("interventions", f"differ: the run at {url} {other}")
    obstacle = first_obstacle(begun, plan.spec)
    if obstacle is not None:
        field, was, now = obstacle
        raise _OtherRunError(
            field, f"cannot become {_shown(now)}: the run at {url} has {_shown(was)}. {reason_against(field)}"
        )
    if plan.facts.fingerprint != record.model.fingerprint:
        raise _OtherRunError(
            "model.source", f"has other files than when the run at {url} was begun. {reason_against('model')}"
        )
    if plan.facts.chat_template_sha256 != record.model.chat_template_sha256:
        raise _OtherRunError(
            "model.chat_template",
            f"is not the chat template that the run at {url} was begun with. All texts of a run are rendered alike.",
        )
    planned = read_units(location, record)
    left_out = first_left_out(planned.values(), plan.units)
    if left_out is not None and any(left_out in set(unit.addresses()) for unit in plan.units):
        raise _renumbered(plan, begun, left_out, url)
    if left_out is not None:
        raise _OtherRunError(
            _field_of(left_out, plan),
            f"leaves out {left_out}, which is planned in the run at {url}. A run may have more rollouts, not fewer.",
        )
    sized = replace(plan, rows_per_block=record.rows_per_block, tokens_per_block=record.tokens_per_block)
    known = replace(sized, spec=begun, units=tuple(planned.values()))
    if known.digest != record.plan_digest:
        raise _other_texts(plan, planned, location)
    number = len(record.additions) + 1
    added = units_to_add(planned.values(), plan.units, number, _room(sized, record))
    whole = replace(sized, units=(*planned.values(), *added))
    if added:
        return whole, Growth(number, record.plan_digest, replace(sized, units=added), whole, url)
    difference = first_difference(begun, plan.spec)
    if difference is None:
        return whole, None
    field, was, now = difference
    raise _OtherRunError(
        field, f"adds nothing to the run at {url}: {_shown(was)} and {_shown(now)} are the same rollouts."
    )


def _renumbered(plan: Plan, begun: JobSpec, first: RolloutAddress, url: str) -> _OtherRunError:
    """Say that conversations of a run would have other numbers, as where some are inserted before them."""
    field, how = plan.spec.texts_field, "Conversations can be appended."
    if plan.spec.drift is not None and begun.drift is not None:
        was, now = begun.drift.per_domain, plan.spec.drift.per_domain
        field = "drift.domains" if was == now else "drift.per_domain"
        how = (
            "They are numbered domain by domain and person by person, so more topics of a person would come between "
            "those that are planned. Domains can be appended; more topics are another run, with its own store.url."
        )
    return _OtherRunError(field, f"would give another number to the conversation of {first} in the run at {url}. {how}")


def _room(plan: Plan, record: RunRecord) -> BlockRoom:
    return BlockRoom(
        record.rows_per_block,
        record.tokens_per_block or None,
        lambda unit: plan.source.most_tokens(unit, plan.facts.max_context),
    )


def _field_of(address: RolloutAddress, plan: Plan) -> str:
    """Name the field that makes a spec leave out a rollout."""
    if address.turn_index is not None:
        return plan.spec.texts_field
    section = "personas.default" if address.kind == "default" else f"personas.{address.kind}s"
    of_persona = [unit for unit in plan.units if (unit.kind, unit.persona) == (address.kind, address.persona)]
    if not of_persona:
        return f"{section}.prompts" if address.kind == "default" else f"{section}.names"
    of_prompt = [unit for unit in of_persona if unit.prompt_index == address.prompt_index]
    if not of_prompt:
        return f"{section}.prompts"
    has_question = any(address.question_index in unit.question_indices for unit in of_prompt)
    return f"{section}.samples" if has_question else f"{section}.questions"


def _other_texts(plan: Plan, planned: Mapping[str, WorkUnit], location: Location) -> _OtherRunError:
    """Say that a text is another than it was; of prompts and questions which one, if a committed rollout tells."""
    url = location.url
    if plan.spec.has_turns:
        return _OtherRunError(
            plan.spec.texts_field,
            f"has another text where the run at {url} has read one. Conversations can be appended, and those that were "
            "read stay as they are.",
        )
    which = changed_text(plan, planned.values(), location) or "a prompt or a question"
    return _OtherRunError(
        "personas.catalog",
        f"has another text for {which} than the run at {url}. Prompts and questions can be appended, and those that "
        "are planned stay as they are.",
    )


def _without_leave(growth: Growth, record: RunRecord, plan: Plan) -> InputError:
    difference = first_difference(record.spec, plan.spec)
    if difference is None:
        # A catalog or a file has more than it had.
        field = plan.spec.texts_field
        message = f"has more than the run at {growth.url} was planned with."
    else:
        field, was, now = difference
        message = f"the run at {growth.url} has {_shown(was)}, the spec says {_shown(now)}."
    more = f"{count_of(len(growth.added.units), 'unit')} with {count_of(growth.added.num_rollouts, 'rollout')}"
    hint = f"Pass --grow (in Python grow=True) to add {more} to it, or give this job its own store.url."
    if plan.spec.harm is not None:
        hint = "Such a run cannot grow: give this job its own store.url."
    elif plan.spec.replays:
        hint = f"The run whose texts it reads has {more} more by now; give this job its own store.url."
    return InputError(message, code="other_run", field=field, hint=hint)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
