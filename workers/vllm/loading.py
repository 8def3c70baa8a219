"""Start vLLM, and tell its failures as this project's errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from importlib import import_module
from typing import Any

from ...jobs.errors import AtlasError, EngineDied, InputError
from ...jobs.machine_faults import refuse_machine_fault
from ..engine import EngineSettings
from ..own_code import refuse_own_code
from .arguments import VllmOptions, engine_arguments, set_environment
from .capture_plan import WorkerPlan
from .edits.cache_keys import key_blocks_by_edits
from .edits.plan import EditPlan
from .model import ServedModel
from .over_nodes.node_group import NodePlace
from .rank_failures import RankFailures
from .ranks import BeforeRanks, Ranks, unlink_shared_memory, without_semaphores
from .versions import require_known_version

_LOST_PEER = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "socket")
"""Words of errors that a rank raises when another one is gone."""

_OTHERS_FIRST_S = 3.0
"""How long such an error is held back, so that the reason is told first by the node where it arose."""


def start_vllm(
    settings: EngineSettings,
    model: ServedModel,
    plan: WorkerPlan,
    edits: EditPlan,
    options: VllmOptions,
    place: NodePlace | None = None,
) -> tuple[Any, Ranks]:
    """Start vLLM and load a model.

    Args:
        settings: What to load and how to run it.
        model: The model.
        plan: What its workers capture.
        edits: Where requests may be edited.
        options: What else is set.
        place: The place of this process in a replica over several nodes; None: there is one node.

    Returns:
        vLLM's engine, and the processes of its ranks on this node.

    Raises:
        InputError: vLLM is missing or of another version, cannot load the model or has no room for it.
    """
    with starting_ranks(settings, place) as before:
        vllm = _started(engine_arguments(settings, model, plan, edits, options, place), options.is_async)
        if edits.places:
            key_blocks_by_edits(vllm)
    return vllm, Ranks.started_since(before)


@contextmanager
def starting_ranks(settings: EngineSettings, place: NodePlace | None) -> Iterator[BeforeRanks]:
    """Prepare the start of this node's ranks; where it fails, leave nothing of them behind and tell why.

    Args:
        settings: What to load and how to run it.
        place: The place of this process in a replica over several nodes; None: there is one node.

    Yields:
        What this process had before.

    Raises:
        InputError: As for :func:`start_vllm`.
    """
    require_known_version()
    # Each process of a replica has a share of its threads.
    ranks = settings.tensor_parallel * settings.pipeline_parallel // (1 if place is None else place.group.num_nodes)
    set_environment(max(1, settings.threads // ranks))
    if place is not None:
        place.set_environment()
    before = BeforeRanks.now()
    with RankFailures() as failures:
        try:
            yield before
        except Exception as error:
            left = Ranks.started_since(before)
            left.kill()
            left.unlink_shared_memory()
            # Ranks that are dead already are no children any more.
            unlink_shared_memory(without_semaphores(failures.shared_memory - before.shared))
            if isinstance(error, AtlasError):
                raise
            refuse_machine_fault(error)
            refuse_own_code(settings.directory, error)
            first = failures.first
            if first is not None and first.refusal is not None:
                raise first.refusal from error
            text = first.text if first else _reason(error)
            if place is not None and any(words in text.lower() for words in _LOST_PEER):
                time.sleep(_OTHERS_FIRST_S)
            raise _not_loaded(settings, text) from error


def engine_config(arguments: dict[str, Any]) -> Any:
    """Make vLLM's configuration from the arguments of its engine."""
    arg_utils: Any = import_module("vllm.engine.arg_utils")
    config = arg_utils.EngineArgs(**arguments).create_engine_config()
    # Where the KV cache is too small for the longest conversation, vLLM finds the longest that it has room for. It does
    # so only for a length that it chose itself.
    config.model_config.original_max_model_len = -1
    return config


def _started(arguments: dict[str, Any], is_async: bool | None) -> Any:
    llm_engine: Any = import_module("vllm.v1.engine.llm_engine")
    config = engine_config(arguments)
    if is_async is not None:
        # Not an argument: on CPUs, vLLM sets it to False whatever was given.
        config.scheduler_config.async_scheduling = is_async
    return llm_engine.LLMEngine.from_vllm_config(config, disable_log_stats=True)


@contextmanager
def beside_vllm(vllm: Any) -> Iterator[None]:
    """Let transformers make a plain model in the process of a vLLM.

    vLLM's transformers backend changes the class of a model's decoder where it is defined, for good: afterwards every
    instance asks for vLLM's configuration, and compiles itself by it. Under one that compiles nothing, it computes
    what it always did.

    Args:
        vllm: vLLM's engine.
    """
    vllm_config: Any = import_module("vllm.config")
    config = copy(vllm.vllm_config)
    config.compilation_config = copy(config.compilation_config)
    config.compilation_config.mode = vllm_config.CompilationMode.NONE
    with vllm_config.set_current_vllm_config(config):
        yield


def _not_loaded(settings: EngineSettings, text: str) -> InputError:
    """Make the error of a model that vLLM could not load, with what would help."""
    lowered = text.lower()
    if "moe backend" in lowered:
        return _no_moe_kernel(settings, text)
    if "tensor parallel" in lowered or "tensor_parallel" in lowered:
        return InputError(
            f"is {settings.tensor_parallel}, and vLLM cannot divide this model so: {text}",
            code="bad_parallel",
            field="placement.tensor_parallel",
            hint="Choose a number that divides the model's attention heads.",
        )
    if "pipeline" in lowered:
        return InputError(
            f"is {settings.pipeline_parallel}, and vLLM cannot divide this model so: {text}",
            code="no_pipeline",
            field="placement.pipeline_parallel",
            hint="Set it to 1, and divide the model with placement.tensor_parallel.",
        )
    if "quant" in lowered:
        return InputError(
            f"vLLM cannot run the quantised weights in {settings.directory}: {text}",
            code="quantised",
            field="model.source",
            hint="Name the checkpoint before quantisation, or one that is quantised in another way"
            f"{', or try less placement.tensor_parallel' if settings.tensor_parallel > 1 else ''}.",
        )
    if "memory" in lowered or "kv cache" in lowered:
        return InputError(
            f"vLLM has no room for the model in {settings.directory}: {text}",
            code="not_enough_memory",
            field="model.source",
            hint="Try more placement.tensor_parallel, a narrower model.dtype, or a smaller model.",
        )
    return InputError(
        f"vLLM cannot load the model in {settings.directory}: {text}",
        code="model_not_loaded",
        field="model.source",
        hint="Check its files, or set placement.engine to builtin.",
    )


def _no_moe_kernel(settings: EngineSettings, text: str) -> InputError:
    """Make the error of experts that vLLM has no kernel for, on this device and divided so."""
    is_divided = settings.tensor_parallel > 1
    return InputError(
        f"vLLM has no kernel on {settings.device} for this model's mixture-of-experts layers"
        f"{f' divided over {settings.tensor_parallel} devices' if is_divided else ''}: {text}",
        code="no_moe_kernel",
        field="placement.tensor_parallel" if is_divided else "placement.engine",
        hint="Set it to 1, or set placement.engine to builtin." if is_divided else "Set it to builtin.",
    )


class Alive:
    """Tells the calls of an engine that its vLLM has ended."""

    def __init__(self) -> None:
        self._died: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self._died is not None

    def require(self) -> None:
        """Refuse a call of an engine that has ended.

        Raises:
            EngineDied: It has.
        """
        if self._died is not None:
            raise EngineDied(f"vLLM has ended: {self._died}", code="engine_died")

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Turn what vLLM raises into the end of the engine: after an error its scheduler and its workers disagree.

        Raises:
            EngineDied: The call failed, or an earlier one did.
        """
        self.require()
        try:
            yield
        except Exception as error:
            self._died = _reason(error)
            raise EngineDied(f"vLLM has ended: {self._died}", code="engine_died") from error

    def end(self) -> None:
        """Record that the engine was closed."""
        self._died = self._died or "it was closed."


def _reason(error: BaseException) -> str:
    """Return the first line of an error, of the one that caused it where it only says that something failed."""
    while error.__cause__ is not None and not isinstance(error, InputError):
        error = error.__cause__
    lines = str(error).strip().splitlines()
    if lines and "validation error" in lines[0]:
        # Of pydantic, which names the class first and the reason on a line of its own.
        lines = [line.strip().partition(" [type=")[0] for line in lines if "Value error, " in line] or lines
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
