"""Plan a job and compare it with its store, before anything is started or written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ...analysis.intervening.section import EditedModel, resolve_section
from ...jobs.engines import possible_engines, refuse_parallel_builtin
from ...jobs.errors import InputError, StoreError
from ...jobs.model_facts import ModelFacts
from ...jobs.plan import Plan, make_plan
from ...jobs.sizing.estimate import Estimate, estimate
from ...jobs.sizing.streaming import planned_weights, require_streamed
from ...jobs.sources.source import RequestSource
from ...jobs.specs.endpoint_keys import refuse_keys
from ...jobs.specs.spec import JobSpec
from ...jobs.specs.spec_parts import ModelSpec
from ...jobs.wording import count_of
from ...jobs.work.run_edits import RunEdits
from ...storage.format.layout import SKIPPED
from ...storage.format.records import RunRecord
from ...storage.locations.location import Location, open_location
from ...storage.run.commits import committed_units
from ...storage.run.run_store import read_edits, read_run_record
from ...workers.chat.template import read_chat_template, template_sha256
from ...workers.models.model_files import earlier_fingerprint, find_model, read_facts
from ...workers.models.model_sketch import FactsFrom, sketch_model
from .growth import Growth, fit_to_run, run_to_grow
from .open_source import open_source
from .progress import Progress
from .rendering import require_readable, require_same_rules


@dataclass(frozen=True)
class Job:
    """A job that is planned and matches its store.

    Attributes:
        plan: The plan.
        estimate: Estimated size of the plan.
        model_directory: Directory with the model's files on this machine.
        location: The store.
        record: Record of the run in the store; None for a new run.
        committed: Ids of the units that are committed already.
        chat_template: Text of the chat template that the spec gives; None: the model's own is used.
        rows_concerned: Rows of a run that is new or grows with texts that are not taken as they are; see
            ``TextSurvey.counts``.
        growth: What is added to the run; None for a new run, and for one that has everything already.
    """

    plan: Plan
    estimate: Estimate
    model_directory: Path
    location: Location
    record: RunRecord | None
    committed: frozenset[str]
    chat_template: str | None = None
    rows_concerned: dict[str, int] = field(default_factory=dict)
    growth: Growth | None = None

    @property
    def num_missing(self) -> int:
        """Number of units that are not committed."""
        return len(set(self.plan.by_id) - self.committed)


def plan_job(
    spec: JobSpec,
    progress: Progress,
    source: RequestSource | None = None,
    record: RunRecord | None = None,
    chat_template: str | None = None,
    edits: RunEdits | None = None,
    recorded: RunEdits | None = None,
) -> tuple[Plan, Path]:
    """Plan a spec against the model and the catalog or conversations it names; the store is not read.

    Args:
        spec: The job.
        progress: Prints a line before something that takes long.
        source: Source of the requests; None opens the one that the spec names.
        record: Record of the run in the store, whose units an earlier version may have sized, or whose model it
            may have identified, in another way; None for a new run.
        chat_template: Text of the chat template that the spec names; None reads it.
        edits: What the spec's ``interventions`` were resolved to already; None resolves them.
        recorded: The edits of the run in the store, which it keeps if their axis cannot be read any more; None for a
            new run.

    Returns:
        The plan, and the directory with the model's files.

    Raises:
        InputError: A persona, conversation, layer, model, intervention or file is wrong.
    """
    refuse_keys(spec)
    # The source first: errors in it are found in a moment, whereas the model may have to be downloaded.
    source = source or open_source(spec)
    for note in source.notes:
        progress.say(note)
    if source.skipped:
        left_out = count_of(len(source.skipped), "conversation")
        progress.say(f"Leaving out {left_out} that cannot be read: see {SKIPPED} in the store.")
    template = chat_template or read_chat_template(spec.model)
    directory = find_model(spec.model, progress.say)
    facts = replace(facts_of_run(directory, record), chat_template_sha256=template_sha256(template))
    edits = edits or edits_for(spec, facts, progress, record, recorded)
    plan = make_plan(spec, source, facts, edits=edits)
    if record is not None and not record.additions and plan.digest != record.plan_digest:
        earlier = make_plan(spec, source, facts, sizes_bits=False, edits=edits)
        plan = earlier if earlier.digest == record.plan_digest else plan
    return plan, directory


def edits_for(
    spec: JobSpec,
    facts: ModelFacts,
    progress: Progress,
    record: RunRecord | None = None,
    recorded: RunEdits | None = None,
) -> RunEdits | None:
    """Resolve the interventions of a spec; None where it has none.

    Args:
        spec: The job.
        facts: Its model.
        progress: Prints a line about an axis of another model, and one that cannot be read any more.
        record: Record of the run in the store; None for a new run.
        recorded: The edits of that run; None for a new run.

    Raises:
        InputError: An axis cannot be read, is of another model, or lacks what an entry asks for.
        StoreError: The store of an axis is damaged.
    """
    if spec.interventions is None:
        return None
    try:
        return resolve_section(spec.interventions, EditedModel.of(spec.model.source, facts), spec.store, progress.say)
    except (InputError, StoreError) as error:
        if record is None or recorded is None or record.spec.interventions != spec.interventions:
            raise
        progress.say(f"The run keeps the edits that it was begun with, since they cannot be resolved again: {error}")
        return recorded


def facts_of_run(directory: Path, record: RunRecord | None) -> ModelFacts:
    """Read a model's facts; its fingerprint is the record's where an earlier version would make that of these files.

    Args:
        directory: The model's directory, as ``find_model`` returns it.
        record: Record of the run in the store; None for a new run.

    Raises:
        InputError: The directory is not a checkpoint that can be run.
    """
    facts = read_facts(directory)
    if record is None or record.model.fingerprint in ("", facts.fingerprint):
        return facts
    # Earlier versions counted weights that are not loaded.
    is_same = record.model.fingerprint == earlier_fingerprint(directory)
    return replace(facts, fingerprint=record.model.fingerprint) if is_same else facts


@dataclass(frozen=True)
class Sketch:
    """A plan that is not compared with a store.

    Attributes:
        plan: The plan.
        facts_from: The source of the model's facts: ``files``, ``configuration`` or ``table``.
        rows_concerned: Rows with texts that are not taken as they are; see ``TextSurvey.counts``. None if the model's
            tokenizer is not on this machine, so that it is not known.
        growth: What the spec adds to the run in its store, of which ``plan`` is the plan; None where that was not
            asked.
    """

    plan: Plan
    facts_from: FactsFrom
    rows_concerned: dict[str, int] | None
    growth: Growth | None = None


def sketch_plan(spec: JobSpec, progress: Progress, *, grow: bool = False) -> Sketch:
    """Plan a spec without downloading weights, unless it has conversations: rendering them needs the model's files.

    Args:
        spec: The job.
        progress: Prints a line before something that takes long.
        grow: Whether to compare it with the run in its store, and to plan only what it adds to that.

    Raises:
        InputError: A persona, conversation, layer, model or file is wrong; or the spec adds nothing, or something that
            cannot be added.
    """
    refuse_keys(spec)
    if not grow:
        return _sketch(spec, progress, None)
    location = open_location(spec.store.url, spec.store.endpoint_url, spec.store.access)
    record = run_to_grow(location, spec)
    sketch = _sketch(spec, progress, record, read_edits(location, record))
    _, growth = fit_to_run(sketch.plan, record, location, grow=True)
    if growth is None:
        raise InputError(
            f"has nothing that is not planned in the run at {location.url} already.",
            code="nothing_to_add",
            field=spec.texts_field.partition(".")[0],
            hint="Run it to do what is missing, or ask for more.",
        )
    return replace(sketch, plan=growth.added, growth=growth)


def sketch_user(spec: JobSpec, progress: Progress) -> ModelFacts | None:
    """Read what pricing needs to know of a model of the user's own; no weights are downloaded.

    Args:
        spec: The job.
        progress: Prints a line where the model is not known here, so that its time cannot be told.

    Returns:
        Its facts; None where nobody plays the user, a server or the model under study does, or it is not known here.
    """
    user = spec.drift.user if spec.drift is not None else None
    if user is None or user.is_same or user.server is not None:
        return None
    try:
        return sketch_model(ModelSpec(source=user.model), progress.say)[0]
    except InputError as error:
        progress.say(f"The time of the user's model is not in the price: {error.message}")
        return None


def _sketch(spec: JobSpec, progress: Progress, record: RunRecord | None, recorded: RunEdits | None = None) -> Sketch:
    template = read_chat_template(spec.model)
    if spec.conversations is not None:
        plan, directory = plan_job(spec, progress, record=record, chat_template=template, recorded=recorded)
        return Sketch(plan, "files", require_readable(plan, directory, progress, template))
    source = open_source(spec)
    facts, facts_from = sketch_model(spec.model, progress.say)
    if record is not None and facts_from == "files":
        facts = facts_of_run(find_model(spec.model, progress.say), record)
    edits = edits_for(spec, facts, progress, record, recorded)
    plan = make_plan(spec, source, replace(facts, chat_template_sha256=template_sha256(template)), edits=edits)
    if facts_from != "files":
        return Sketch(plan, facts_from, None)
    directory = find_model(spec.model, progress.say)
    return Sketch(plan, facts_from, require_readable(plan, directory, progress, template))


def prepare_job(
    spec: JobSpec,
    progress: Progress,
    source: RequestSource | None = None,
    chat_template: str | None = None,
    *,
    grow: bool = False,
    edits: RunEdits | None = None,
) -> Job:
    """Plan a spec and compare it with its store; nothing is written.

    Args:
        spec: The job.
        progress: Prints a line before something that takes long.
        source: Source of the requests; None opens the one that the spec names.
        chat_template: Text of the chat template that the spec names; None reads it.
        grow: Whether the job may add to the run in its store.
        edits: What the spec's ``interventions`` were resolved to already; None resolves them.

    Raises:
        InputError: The spec is wrong or not supported yet, the store belongs to another run, or holds none to add to.
        StoreError: The store is damaged.
    """
    refuse_parallel_builtin(spec.placement)
    refuse_keys(spec)
    location = open_location(spec.store.url, spec.store.endpoint_url, spec.store.access)
    record = run_to_grow(location, spec) if grow else read_run_record(location)
    template = chat_template or read_chat_template(spec.model)
    recorded = None if record is None else read_edits(location, record)
    plan, directory = plan_job(spec, progress, source, record, template, edits, recorded)
    require_streamed(plan)
    growth: Growth | None = None
    if record is not None:
        plan, growth = fit_to_run(plan, record, location, grow=grow)
    # Where it depends on the machines which engine runs, this is the built-in one.
    figures = estimate(plan, possible_engines(spec, plan.facts)[0], planned_weights(plan))
    if record is None:
        concerned = require_readable(plan, directory, progress, template)
        return Job(plan, figures, directory, location, None, frozenset(), template, concerned)
    committed = frozenset(committed_units(location))
    job = Job(plan, figures, directory, location, record, committed, template, growth=growth)
    if growth is not None:
        job = replace(job, rows_concerned=require_readable(plan, directory, progress, template))
    if job.num_missing:
        require_same_rules(record, plan, directory, template, location.url)
    return job
