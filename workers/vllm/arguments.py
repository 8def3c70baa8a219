"""How vLLM is started: its arguments and the environment variables that it reads. Does not import vLLM."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import Any

from ...jobs.engines import VLLM_MAX_NUM_BATCHED_TOKENS, VLLM_MAX_NUM_SEQS, VLLM_READING_SLOTS
from ...jobs.errors import InputError
from ..engine import EngineSettings
from .capture_plan import KEY, WorkerPlan
from .edits.plan import DIRECTIONS, EDITS_KEY, EDITS_PER_LAYER, EditPlan
from .inside.worker import WORKER_CLASSES
from .model import ServedModel
from .over_nodes.node_group import NodePlace

_CPU_BLOCK_TOKENS = 128
"""Tokens of one block of the KV cache on a CPU; of the last block of every sequence, a part is not used."""

_ENVIRONMENT = {
    # One process holds the scheduler: the worker process of this project, which must not leave another behind.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Standard output belongs to the command's result.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # A position more than the model has: see ``engine_arguments``.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    # Replicas on one machine must not all bind themselves to its first cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    # Ranks have nothing to put in order, and are killed when they are asked in vain.
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
}


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What may be set beside an engine's settings; None leaves it to the rule or to vLLM.

    Attributes:
        max_num_seqs: Most rollouts of one batch.
        max_num_batched_tokens: Most tokens of one forward pass; longer prompts are split.
        kv_cache_bytes: Memory of the KV cache of one device.
        enforce_eager: Whether to run without compiled graphs; None: on CPUs.
        is_async: Whether a pass is scheduled before the tokens of the one before are known.
        captures: Whether activations are captured; without, rollouts have no vectors, for benchmarks.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    enforce_eager: bool | None = None
    is_async: bool | None = None
    captures: bool = True


def num_sequences(settings: EngineSettings, options: VllmOptions) -> int:
    """Return the most rollouts of one batch: as many as its tokens admit at their longest, up to a limit."""
    if options.max_num_seqs is not None:
        return options.max_num_seqs
    return max(1, min(VLLM_MAX_NUM_SEQS, settings.batch_size // settings.sampling.max_new_tokens))


def worker_plan(settings: EngineSettings, model: ServedModel, options: VllmOptions) -> WorkerPlan:
    """Make the plan of the workers' captures."""
    return WorkerPlan.of(
        settings.capture.poolings,
        layers=settings.layers,
        token_layers=settings.token_layers,
        slots=num_sequences(settings, options) + VLLM_READING_SLOTS,
        stop_ids=sorted(model.stop_ids),
    )


def edit_plan(settings: EngineSettings, model: ServedModel, options: VllmOptions) -> EditPlan:
    """Make the plan of the workers' edits; one without places where nothing may be edited.

    Raises:
        InputError: The model lacks a layer that is to be edited.
    """
    layers = settings.edited_layers
    if layers is None:
        layers = tuple(range(model.num_layers)) * EDITS_PER_LAYER
    outside = sorted({layer for layer in layers if not 0 <= layer < model.num_layers})
    if outside:
        raise InputError(
            f"interventions are to edit layer {outside[0]}; the model has layers 0 to {model.num_layers - 1}.",
            code="bad_intervention",
        )
    # Of every request in flight, prompt and response may be edited in ways that no other's are.
    rows = 2 * (num_sequences(settings, options) + VLLM_READING_SLOTS)
    return EditPlan(tuple(sorted(layers)), directions=DIRECTIONS, settings=rows)


def engine_arguments(
    settings: EngineSettings,
    model: ServedModel,
    plan: WorkerPlan,
    edits: EditPlan,
    options: VllmOptions,
    place: NodePlace | None = None,
) -> dict[str, Any]:
    """Return the arguments of vLLM's engine.

    Args:
        settings: What to load and how to run it.
        model: The model.
        plan: What its workers capture.
        edits: Where requests may be edited.
        options: What else is set.
        place: The place of this process in a replica over several nodes; None: there is one node.
    """
    on_cpu = settings.device == "cpu"
    kv_cache_bytes = options.kv_cache_bytes
    if kv_cache_bytes is None and on_cpu and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        # vLLM would take nine tenths of the machine. Each device of a group holds its part of every token.
        tokens = settings.batch_size + num_sequences(settings, options) * _CPU_BLOCK_TOKENS
        value_bytes = 4 if settings.dtype == "float32" else 2
        devices = settings.tensor_parallel * settings.pipeline_parallel
        kv_cache_bytes = tokens * model.kv_values_per_token * value_bytes // devices
    arguments: dict[str, Any] = {
        "model": str(settings.directory),
        "tokenizer": str(settings.directory),
        "dtype": settings.dtype,
        "model_impl": model.implementation,
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
        # Of every response a token more is sampled than asked for, so that its last one is fed to the model. It has the
        # position after the longest conversation, and is never fed itself.
        "max_model_len": model.max_context + 1,
        "max_num_seqs": num_sequences(settings, options) + VLLM_READING_SLOTS,
        # The hidden states of all captured layers of one pass are in memory together.
        "max_num_batched_tokens": options.max_num_batched_tokens or VLLM_MAX_NUM_BATCHED_TOKENS,
        "kv_cache_memory_bytes": kv_cache_bytes,
        "enforce_eager": on_cpu if options.enforce_eager is None else options.enforce_eager,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
        # What the checkpoint recommends for sampling is not what the spec asks for.
        "generation_config": "vllm",
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "worker_cls": WORKER_CLASSES[settings.device],
    }
    if settings.tensor_parallel * settings.pipeline_parallel > 1:
        arguments["distributed_executor_backend"] = "mp"
    if on_cpu:
        # Rollouts have no seeds of their own there. With vLLM's fixed one, every replica would draw the same numbers.
        arguments["seed"] = secrets.randbits(31) if place is None else place.group.seed
    if place is not None:
        arguments |= place.arguments
    # Part of what vLLM names a compiled model by, as it must be: other places give other graphs.
    ours = {KEY: plan.to_json() if options.captures else None, EDITS_KEY: edits.to_json() if edits.places else None}
    arguments["additional_config"] = {name: value for name, value in ours.items() if value is not None}
    return {name: value for name, value in arguments.items() if value is not None}


def set_environment(threads: int) -> None:
    """Set the variables that vLLM reads when it is imported, where they are not set.

    Args:
        threads: CPU threads of one process.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Not a default: Ray sets it to the cores of the whole replica.
    os.environ["OMP_NUM_THREADS"] = str(threads)
