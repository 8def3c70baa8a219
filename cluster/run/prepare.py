"""Plan a job and compare it with its store, before anything is started or written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...jobs.errors import InputError
from ...jobs.plan import Plan, make_plan
from ...jobs.sizing.estimate import Estimate, estimate
from ...jobs.sources.load import load_source
from ...jobs.sources.source import RequestSource
from ...jobs.spec import JobSpec
from ...jobs.wording import count_of
from ...storage.format.records import RunRecord
from ...storage.locations.location import Location, open_location
from ...storage.run.commits import committed_units
from ...storage.run.run_store import check_same_run, read_run_record
from ...workers.chat.spans import load_renderer, require_within_context
from ...workers.chat.user_span import require_user_spans
from ...workers.models.model_files import earlier_fingerprint, find_model, read_facts
from ...workers.models.model_sketch import FactsFrom, sketch_model
from .progress import Progress


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
    """

    plan: Plan
    estimate: Estimate
    model_directory: Path
    location: Location
    record: RunRecord | None
    committed: frozenset[str]

    @property
    def num_missing(self) -> int:
        """Number of units that are not committed."""
        return len(set(self.plan.by_id) - self.committed)


def plan_job(
    spec: JobSpec,
    progress: Progress,
    source: RequestSource | None = None,
    record: RunRecord | None = None,
) -> tuple[Plan, Path]:
    """Plan a spec against the model and the catalog or conversations it names; the store is not read.

    Args:
        spec: The job.
        progress: Prints a line before something that takes long.
        source: Source of the requests; None opens the one that the spec names.
        record: Record of the run to resume; None for a new run.

    Returns:
        The plan, and the directory with the model's files.

    Raises:
        InputError: A persona, conversation, layer, model or file is wrong.
    """
    # The source first: errors in it are found in a moment, whereas the model may have to be downloaded.
    source = source or load_source(spec)
    directory = find_model(spec.model, progress.say)
    facts = read_facts(directory)
    begun = "" if record is None else record.model.fingerprint
    # Runs of earlier versions counted weights that are not loaded, and go on.
    if begun not in ("", facts.fingerprint) and begun == earlier_fingerprint(directory):
        facts = replace(facts, fingerprint=begun)
    plan = make_plan(spec, source, facts)
    _refuse_no_room(plan)
    return plan, directory


def sketch_plan(spec: JobSpec, progress: Progress) -> tuple[Plan, FactsFrom]:
    """Plan a spec without downloading weights, unless it has conversations: rendering them needs the model's files.

    Args:
        spec: The job.
        progress: Prints a line before something that takes long.

    Returns:
        The plan, and the source of the model's facts: ``files``, ``configuration`` or ``table``.

    Raises:
        InputError: A persona, conversation, layer, model or file is wrong.
    """
    if spec.conversations is not None:
        plan, directory = plan_job(spec, progress)
        require_readable(plan, directory, progress)
        return plan, "files"
    facts, facts_from = sketch_model(spec.model, progress.say)
    plan = make_plan(spec, load_source(spec), facts)
    _refuse_no_room(plan)
    return plan, facts_from


def require_readable(plan: Plan, directory: Path, progress: Progress) -> None:
    """Render every existing conversation once, so that an invalid one is found before a model is loaded.

    If a pooling needs the user's message, it is located in all conversations and prompts, too.

    Args:
        plan: The plan.
        directory: Directory with the model's tokenizer.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: The model's template rejects a conversation, the user's message cannot be located, or the
            conversation is longer than the model's context.
    """
    needs_user_spans = plan.spec.capture.needs_user_spans
    if plan.source.generates and needs_user_spans:
        progress.say("Checking the prompts against the chat template.")
        requests = (request for unit in plan.units for request in plan.requests(unit).first(unit))
        require_user_spans(load_renderer(directory).user_spans(), requests)
    conversations = plan.source.conversations
    if not conversations:
        return
    progress.say(f"Checking {count_of(len(conversations), 'conversation')} against the chat template.")
    renderer = load_renderer(directory)
    user_spans = renderer.user_spans() if needs_user_spans else None
    for given in conversations:
        require_within_context(renderer.render(given), plan.facts.max_context)
        if user_spans is not None:
            user_spans.of_turns(given, list(given.turn_indices()))


def prepare_job(
    spec: JobSpec,
    progress: Progress,
    source: RequestSource | None = None,
) -> Job:
    """Plan a spec and compare it with its store; nothing is written.

    Args:
        spec: The job.
        progress: Prints a line before something that takes long.
        source: Source of the requests; None opens the one that the spec names.

    Raises:
        InputError: The spec is wrong or not supported yet, or the store belongs to another run.
        StoreError: The store is damaged.
    """
    refuse_tensor_parallel(spec)
    location = open_location(spec.store.url, spec.store.endpoint_url)
    record = read_run_record(location)
    plan, directory = plan_job(spec, progress, source, record)
    if record is not None:
        check_same_run(record, plan, location.url)
    else:
        require_readable(plan, directory, progress)
    committed = frozenset(committed_units(location)) if record is not None else frozenset()
    return Job(plan, estimate(plan), directory, location, record, committed)


def refuse_tensor_parallel(spec: JobSpec) -> None:
    """Refuse replicas with several GPUs before the model is downloaded, which may be 140 GB.

    Args:
        spec: The job.

    Raises:
        InputError: ``placement.tensor_parallel`` is more than 1.
    """
    if spec.placement.tensor_parallel > 1:
        raise InputError(
            f"asks for {spec.placement.tensor_parallel} GPUs a replica; a run takes 1 so far. Planning, pricing and "
            "rendering such a job work.",
            code="not_yet",
            field="placement.tensor_parallel",
            hint="Run a model that fits one GPU, with --set placement.tensor_parallel=1.",
        )


def _refuse_no_room(plan: Plan) -> None:
    """Refuse responses that leave no room for a prompt in the context, so that no rollout could begin."""
    new, context = plan.spec.sampling.max_new_tokens, plan.facts.max_context
    if plan.source.generates and new >= context:
        raise InputError(
            f"is {new}, but the model's context of {context} tokens holds the prompt too.",
            code="too_long",
            field="sampling.max_new_tokens",
            hint=f"Set it below {context}, with room for the prompts.",
        )
