"""The Python interface: plan, run, extract, reduce, compare, verify, export and import without a command line.

Each function does what the command of the same name does and raises the same errors; progress goes to stderr. The names
that a program should use are those of ``persona_atlas``; this module is where they are made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..analysis.comparison.compare import compare as compare_sides
from ..analysis.comparison.results import Comparison
from ..analysis.comparison.sides import refuse_same, side_of
from ..analysis.exchange.export import Exported, ExportFormat, export_vectors
from ..analysis.exchange.read_directory import import_directory
from ..analysis.reduce import reduce_run
from ..analysis.summary import Summary
from ..jobs.plan import Plan
from ..jobs.scheduling.ledger import Failure
from ..jobs.sources.conversation_source import ConversationSource
from ..jobs.sources.read_conversations import parse_conversations
from ..jobs.sources.source import RequestSource
from ..jobs.specs.spec import JobSpec, load_spec, make_spec
from ..storage.derived.reductions import Reduction
from ..storage.locations.location import open_location
from ..storage.query.run import Run, open_run
from ..storage.query.vectors import Vectors, VectorSet, open_vectors
from ..storage.verification.verify import Verification
from .run.backend import open_ray_backend
from .run.local import open_local_backend
from .run.prepare import prepare_job, sketch_plan
from .run.progress import Progress
from .run.recompute import verify_and_recompute
from .run.whole_job import finish_job

SpecLike = JobSpec | str | os.PathLike[str] | Mapping[str, Any]
"""A validated spec, the path of a YAML file, or the file's content as a mapping."""

_IN_MEMORY = "(in memory)"
"""Value of ``conversations.source`` in the record of a run whose conversations were passed from Python."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended, with its run open for reading.

    Attributes:
        run: The run's store, open.
        planned: Number of units of the job.
        done: Number of units that are committed now.
        worked: Number of units that this call committed; 0 when none was missing.
        failures: Units that were given up, each with its last error.
        summary: Summary of the reduction at the middle layer; None when there is nothing to reduce.
        report: Path or URL of the HTML report; None when there is nothing to reduce.
        skipped: Number of entries of the input that were left out, with ``skip_invalid``, because they cannot be read.

    Example:
        >>> from persona_atlas import run
        >>> result = run("job.yaml", progress=False)
        >>> result.is_complete, result.failures
        (True, ())
    """

    run: Run
    planned: int
    done: int
    worked: int
    failures: tuple[Failure, ...]
    summary: Summary | None
    report: str | None
    skipped: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.done == self.planned


def plan(spec: SpecLike, *, grow: bool = False, progress: bool = True) -> Plan:
    """Plan a job without running it and without fetching weights.

    Args:
        spec: What to plan.
        grow: Whether to plan only what the spec adds to the run in its store.
        progress: Whether to print a line before something that takes long.

    Returns:
        The units of the job; ``estimate`` gives its tokens, bytes and memory.

    Raises:
        InputError: The spec, a persona, a conversation, a layer or the model is wrong; or, with ``grow``, the spec adds
            nothing, or something that cannot be added.

    Example:
        >>> from persona_atlas import plan
        >>> planned = plan("job.yaml")
        >>> len(planned.units), planned.num_rollouts
        (7, 14)
    """
    return sketch_plan(_as_spec(spec), _progress(progress), grow=grow).plan


def run(
    spec: SpecLike,
    *,
    grow: bool = False,
    replicas: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> JobResult:
    """Run a job, or what is missing of it, then reduce it and write its report.

    The model runs in this process. More than one replica starts Ray on this machine, and ``address`` joins a Ray
    cluster. Ctrl-C (``KeyboardInterrupt``) stops the job; committed units stay, and the same call does what is missing.

    Args:
        spec: What to run.
        grow: Whether the job may add to the run in its store: personas, prompts, questions, samples. The same call does
            what is missing of that too.
        replicas: Copies of the model; ``placement.replicas`` of the spec when None, else 1.
        address: ``host:port`` of a Ray cluster, or ``auto`` for the one that this machine belongs to.
        progress: Whether to print progress to stderr.

    Returns:
        The result. Check ``is_complete``: units that were given up are listed in ``failures`` and raise no error.

    Raises:
        InputError: The spec is wrong, the store belongs to another run, or another driver is working on it.
        StoreError: The store is damaged.
        TransientError: The store failed, after retries.
        JobError: No worker could be started.

    Example:
        >>> from persona_atlas import run
        >>> result = run("job.yaml", progress=False)
        >>> result.run.activations(persona="pirate", layer=1).values.shape
        (4, 32)
    """
    return _work(_as_spec(spec), replicas, address, progress, grow=grow)


def extract(
    model: str | os.PathLike[str],
    conversations: str | os.PathLike[str] | Sequence[Any],
    store: str | os.PathLike[str],
    *,
    layers: str | Sequence[int] = "all",
    poolings: Sequence[str] | None = None,
    token_layers: str | Sequence[int] | None = None,
    prompts_only: bool = False,
    skip_invalid: bool = False,
    chat_template: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    grow: bool = False,
    replicas: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> JobResult:
    """Run a model over existing conversations and store its activations, one row per message of the assistant.

    Args:
        model: A Hugging Face id, a local directory, or ``package://module/file.gguf``.
        conversations: A ``.jsonl`` or ``.json`` file or a directory of such files; or in memory a list of messages
            ``{"role", "content"}``, or a list of conversations, each such a list or an object with ``messages``.
        store: A directory or ``s3://bucket/prefix``.
        layers: ``"all"``, ``"middle"`` or 0-based decoder layers.
        poolings: How the tokens of each response are pooled; ``tokens`` keeps every token. None: ``response_mean``, or
            ``prompt_last`` with ``prompts_only``.
        token_layers: Layers at which the pooling ``tokens`` keeps every token; None without it.
        prompts_only: Whether the conversations are prompts without an answer: each ends with a message of the user and
            is one row, and only poolings that are defined without a response can be captured.
        skip_invalid: Whether to leave out conversations that cannot be read; otherwise one is enough to refuse all.
        chat_template: File with a chat template to use instead of the model's; None: the model's.
        overrides: ``key.path=value`` assignments to other fields of the spec.
        grow: Whether to add conversations that were appended since to the run in the store.
        replicas: Copies of the model; ``placement.replicas`` of the spec when None, else 1.
        address: ``host:port`` of a Ray cluster, or ``auto`` for the one that this machine belongs to.
        progress: Whether to print progress to stderr.

    Returns:
        The result, with the run open for reading.

    Raises:
        InputError: A conversation, a layer, the model or another field is wrong.
        StoreError: The store is damaged.
        TransientError: The store failed, after retries.
        JobError: No worker could be started.

    Example:
        >>> from persona_atlas import extract
        >>> talk = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A pirate!"}]
        >>> extract("models/tiny", talk, "runs/talk", progress=False).run.activations(layer="all").values.shape
        (1, 3, 32)
    """
    is_path = isinstance(conversations, str | os.PathLike)
    capture = {"layers": _plain(layers), "token_layers": _plain(token_layers)}
    data = {
        "model": {"source": _text(model), "chat_template": None if chat_template is None else os.fspath(chat_template)},
        "conversations": {
            "source": os.fspath(conversations) if is_path else _IN_MEMORY,
            "skip_invalid": skip_invalid,
            "prompts_only": prompts_only,
        },
        "capture": capture if poolings is None else capture | {"poolings": _plain(poolings)},
        "store": {"url": os.fspath(store)},
    }
    spec = make_spec(data, overrides)
    source: ConversationSource | None = None
    if not is_path and spec.conversations is not None:
        asked = spec.conversations
        source = ConversationSource.of(
            parse_conversations(conversations, skip_invalid=asked.skip_invalid, prompts_only=asked.prompts_only)
        )
    return _work(spec, replicas, address, progress, source, grow=grow)


def reduce(
    run: Run | str | os.PathLike[str],
    *,
    hook_point: str | None = None,
    pooling: str | None = None,
    judge: str | None = None,
    min_score: float | None = None,
    min_count: int | None = None,
    percentiles: Sequence[float] | None = None,
    progress: bool = True,
) -> Reduction:
    """Compute a run's role and trait vectors, Assistant Axis, PCA and thresholds, and store them in the run.

    What was read before is not read again: new units and new scores cost what is new.

    Args:
        run: An open run, or the path or URL of its store.
        hook_point: Hook point to reduce; None: ``resid_post``, or the first that was captured.
        pooling: Pooling to reduce; None: ``response_mean``, or the first that was captured.
        judge: Judge whose scores decide which rollouts of roles count, and which pairs of traits; ``"none"``: all
            count; None: the only judge that has scored the run, if there is one.
        min_score: Least score of a role's rollout that counts, 0 to 3; None: 3. Refused without a judge.
        min_count: Least number of rollouts behind a role vector, and of pairs behind a trait vector; None: 10 with a
            judge, 1 without.
        percentiles: Percentiles of the thresholds, 0 to 100; None: 1, 25, 50 and 75.
        progress: Whether to print progress to stderr.

    Returns:
        The reduction of the committed units. If the same one is stored already, it is opened instead of computed.

    Raises:
        InputError: There is no run, or nothing in it to reduce; there is no such judge, several have scored the run and
            none is named, or no role has enough rollouts that count.
        StoreError: A committed value is missing or damaged.

    Example:
        >>> from persona_atlas import reduce
        >>> found = reduce("runs/demo", progress=False)
        >>> found.axis[found.position(15)].shape
        (576,)
    """
    opened = run if isinstance(run, Run) else open_run(run)
    return reduce_run(
        opened,
        hook_point=hook_point,
        pooling=pooling,
        judge=judge,
        min_score=min_score,
        min_count=min_count,
        percentiles=percentiles,
        say=_progress(progress).say,
    )


def compare(
    a: Run | str | os.PathLike[str],
    b: Run | str | os.PathLike[str],
    *,
    layer: int | None = None,
    reduction_a: str | None = None,
    reduction_b: str | None = None,
) -> Comparison:
    """Compare two reductions: two models, two judges, two checkpoints, or a base model and its fine-tune.

    Args:
        a: An open run, or the path or URL of its store.
        b: Another, or the same with another reduction.
        layer: Layer of ``a`` to compare in detail; None: the middle one of those that have a partner.
        reduction_a: Id of a stored reduction of ``a``; None: the current one.
        reduction_b: Id of a stored reduction of ``b``; None: the current one.

    Returns:
        Correlations of how both order their common roles, cosines of their axes where they are equally wide, and the
        roles that moved, by layers at the same depth.

    Raises:
        InputError: A run has no such reduction, both are the same, fewer than three roles are common, or no layer is.
        StoreError: A reduction is damaged.

    Example:
        >>> from persona_atlas import compare, reduce
        >>> made = [reduce(store, progress=False) for store in ("runs/demo", "runs/tokens")]
        >>> found = compare("runs/demo", "runs/tokens", layer=15)
        >>> found.roles, round(found.at.axis_cosine, 3)
        (('pirate', 'poet', 'teacher'), 1.0)
    """
    run_a, run_b = (run if isinstance(run, Run) else open_run(run) for run in (a, b))
    side_a, side_b = side_of(run_a, reduction_a, "reduction_a"), side_of(run_b, reduction_b, "reduction_b")
    refuse_same(side_a, side_b, "Name another with reduction_a or reduction_b.")
    return compare_sides(side_a, side_b, layer)


def verify(
    run: Run | str | os.PathLike[str],
    *,
    quick: bool = False,
    recompute: int = 0,
    seed: int = 0,
    model: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Verification:
    """Read a run again and check every checksum, row, span and value against its commit records.

    Args:
        run: An open run, or the path or URL of its store.
        quick: Whether to compare lengths only, and read no object.
        recompute: Number of rollouts, chosen at random, to compare with plain forward passes of the run's model.
        seed: Seed of that choice.
        model: Where the model is now, if it is not where the run's record says.
        progress: Whether to print progress to stderr.

    Returns:
        The result: ``is_sound`` when nothing is damaged and no recomputed rollout differs, ``is_complete`` when no unit
        is missing.

    Raises:
        InputError: There is no run; or the model to recompute with is not the run's, or cannot be loaded.
        StoreError: ``run.json`` cannot be read.
        TransientError: The store failed.

    Example:
        >>> from persona_atlas import verify
        >>> verify("runs/demo").is_sound
        True
    """
    location = run.location if isinstance(run, Run) else open_location(run)
    return verify_and_recompute(
        location, _progress(progress), quick=quick, count=recompute, seed=seed, model=_text(model)
    )


def export(
    store: Vectors | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    format: ExportFormat,  # noqa: A002 - the name of the command's option
    *,
    vectors: Sequence[str] = (),
    progress: bool = True,
) -> Exported:
    """Write the vectors of a store to a new folder, in a form that people share.

    Args:
        store: An open run or imported vectors, or the path or URL of their store.
        directory: The folder; it may exist if it is empty.
        format: ``assistant-axis`` (the released files), ``safetensors`` or ``gguf`` (control vectors).
        vectors: Which control vectors to write: ``axis``, ``role:NAME``, ``trait:NAME``; empty: the axis.
        progress: Whether to print progress to stderr.

    Returns:
        The files that were written, and what the format left out.

    Raises:
        InputError: There is no such vector, the format cannot hold what there is, or the folder is not empty.

    Example:
        >>> from persona_atlas import export, reduce
        >>> reduction = reduce("runs/demo", progress=False)
        >>> export("runs/demo", "shared", "gguf", progress=False).files[0].name
        'axis.gguf'
    """
    opened = open_vectors(store) if isinstance(store, str | os.PathLike) else store
    return export_vectors(opened, Path(directory), format, wanted=vectors, say=_progress(progress).say)


def import_vectors(
    directory: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    model: str | None = None,
    progress: bool = True,
) -> VectorSet:
    """Read vectors that others share into a new store.

    Args:
        directory: A released directory, our safetensors export or GGUF control vectors.
        store: Path or URL of the new store.
        model: Name of the model, where the files do not have it.
        progress: Whether to print progress to stderr.

    Returns:
        The imported vectors, open for reading.

    Raises:
        InputError: A file is missing or not as it must be, the model is not named, or the store is not empty.

    Example:
        >>> from persona_atlas import export, import_vectors, reduce
        >>> reduction = reduce("runs/demo", progress=False)
        >>> folder = export("runs/demo", "released", "assistant-axis", progress=False).folder
        >>> import_vectors(folder, "runs/imported", model="some/model", progress=False).reduction.axis.shape
        (30, 576)
    """
    location = open_location(store)
    record = import_directory(Path(directory), location, model, _progress(progress).say)
    return VectorSet(location, record)


def _work(
    spec: JobSpec,
    replicas: int | None,
    address: str | None,
    shows_progress: bool,
    source: RequestSource | None = None,
    *,
    grow: bool,
) -> JobResult:
    if replicas is not None:
        spec = spec.replaced(placement={"replicas": replicas})
    progress = _progress(shows_progress)
    job = prepare_job(spec, progress, source, grow=grow)
    if job.growth is not None:
        progress.say(str(job.growth))
    needs_ray = address is not None or (spec.placement.replicas or 1) > 1
    open_backend = partial(open_ray_backend, address=address) if needs_ray else open_local_backend
    outcome, conclusion = finish_job(job, progress, open_backend)
    return JobResult(
        run=conclusion.store,
        planned=outcome.planned,
        done=outcome.done,
        worked=outcome.worked,
        failures=outcome.failures,
        summary=conclusion.summary,
        report=conclusion.report_place,
        skipped=len(job.plan.source.skipped),
    )


def _as_spec(spec: SpecLike) -> JobSpec:
    if isinstance(spec, JobSpec):
        return spec
    return make_spec(spec) if isinstance(spec, Mapping) else load_spec(os.fspath(spec))


def _text(path: Any) -> Any:
    """Make a text of a path object; what is none stays, and the spec refuses it by its field."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _plain(value: Any) -> Any:
    """Make a list of any sequence, as an array is one; what is none stays, and the spec refuses it by its field."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else value


def _progress(is_shown: bool) -> Progress:
    return Progress(Console(stderr=True, quiet=not is_shown))
