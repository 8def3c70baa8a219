"""The Python interface to jobs: plan, run and extract without a command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...analysis.summary import Summary
from ...jobs.plan import Plan
from ...jobs.scheduling.ledger import Failure
from ...jobs.sources.conversation_source import ConversationSource
from ...jobs.sources.reading.read_conversations import parse_conversations
from ...jobs.sources.source import RequestSource
from ...jobs.specs.spec import JobSpec, load_spec, make_spec
from ...jobs.specs.texts_spec import TextsRendering
from ...storage.query.run import Run
from ..run.backend import open_ray_backend
from ..run.local import open_local_backend
from ..run.prepare import prepare_job, sketch_plan
from ..run.whole_job import finish_job
from .progress import shown_progress

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
    return sketch_plan(_as_spec(spec), shown_progress(progress), grow=grow).plan


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
    conversations: str | os.PathLike[str] | Sequence[Any] | None,
    store: str | os.PathLike[str],
    *,
    texts_of: str | os.PathLike[str] | None = None,
    rendering: TextsRendering | None = None,
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
            ``{"role", "content"}``, or a list of conversations, each such a list or an object with ``messages``. None
            with ``texts_of``.
        store: A directory or ``s3://bucket/prefix``.
        texts_of: Store of a run whose responses are read again, by a base model for instance; None for none.
        rendering: How its texts become tokens: ``tokens`` (the stored ids), ``template`` or ``plain``. None:
            ``template`` with ``chat_template``, else ``tokens``.
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
            "source": os.fspath(conversations) if is_path else None if conversations is None else _IN_MEMORY,
            "texts_of": None if texts_of is None else os.fspath(texts_of),
            "rendering": rendering,
            "skip_invalid": skip_invalid,
            "prompts_only": prompts_only,
        },
        "capture": capture if poolings is None else capture | {"poolings": _plain(poolings)},
        "store": {"url": os.fspath(store)},
    }
    spec = make_spec(data, overrides)
    source: ConversationSource | None = None
    if not is_path and conversations is not None and spec.conversations is not None:
        asked = spec.conversations
        source = ConversationSource.of(
            parse_conversations(conversations, skip_invalid=asked.skip_invalid, prompts_only=asked.prompts_only)
        )
    return _work(spec, replicas, address, progress, source, grow=grow)


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
    progress = shown_progress(shows_progress)
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
