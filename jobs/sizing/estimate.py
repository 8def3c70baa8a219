"""Estimate the tokens, bytes and memory of a plan by fixed rules of thumb. Knows nothing of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..engines import (
    FAMILIES_RUN_ALONE,
    VLLM_MAX_NUM_BATCHED_TOKENS,
    VLLM_MAX_NUM_SEQS,
    VLLM_READING_SLOTS,
    Engine,
)
from ..plan import Plan
from ..sources.source import TokenCounts
from ..specs.spec_parts import PlacementSpec
from ..work.unit_size import stored_bytes_per_value
from .turn_cache import NOTHING_KEPT, TurnCache, turn_cache

BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float16": 2}

HEADROOM = 1.2
"""Memory in relation to weights, KV cache and captured sums; the rest is activations and fragmentation."""

UNITS_HELD = 4
"""Units that are held in memory because some of their rollouts are unfinished or they are not written yet."""

Weights = Literal["resident", "streamed"]
"""Whether a replica holds the weights of all layers, or loads them layer by layer."""

ASSUMED_WALK_TOKENS = 32_768
"""Tokens that are read each time streamed weights are, for planning memory and assignments. A worker measures how many
it needs; ``streaming`` computes it for a device."""

DEFAULT_BATCH_TOKENS = 12_288
"""Tokens of a batch by default: about 90 short rollouts, beyond which decoding on a CPU gains little."""

DEFAULT_VLLM_TOKENS = VLLM_MAX_NUM_SEQS * 1024
"""Tokens of a batch of vLLM on GPUs by default: all of its slots, for responses of up to 1,024 tokens."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated size of a plan.

    Attributes:
        prompt_tokens: Tokens of all prompts, roughly.
        response_tokens: Tokens of all responses: of generated ones at most, of given ones roughly.
        canary_tokens: Tokens of the rollouts that are recomputed as a check: their expected number, at full length.
        stored_bytes: Bytes of activations in the store, roughly, kept tokens included; texts add a few per cent.
        stored_token_bytes: The part of ``stored_bytes`` for the pooling ``tokens``, with responses of full length.
        objects: Objects in the store: per unit one for each hook point and pooling, one of texts, one commit record.
        weight_bytes: Bytes of the weights of one replica, all its devices together; of quantised ones, for vLLM, those
            of the checkpoint.
        cache_bytes: Bytes of the KV cache of one batch, all devices together; 0 for texts that are only read. vLLM has
            at least that, and takes the rest of a GPU's memory too.
        rows_per_batch: Rollouts that are in one batch, roughly.
        row_tokens: Tokens of the longest rollout, prompt and response; of given texts of a mean one.
        capture_bytes: Bytes of the pooled sums of one batch, float32; of vLLM those of all its slots.
        step_bytes: Bytes of the states of all captured layers in one step of vLLM; 0 for the built-in engine, which
            adds up each layer as it goes.
        held_token_bytes: Bytes of kept tokens in main memory, not on the device: those of running rollouts and of
            units that are not written yet, float32.
        rows_per_assignment: Rollouts that a worker is assigned at a time, roughly: half a batch, because workers
            request more before their batch runs empty; two batches of given texts, so that more of them share a
            prefix; at least the concurrency of a server.
        tensor_parallel: Devices among which each decoder layer of a replica is split.
        pipeline_parallel: Stages of a replica, of ``tensor_parallel`` devices each.
        engine: Engine that is estimated.
        user_prompt_tokens: Tokens that the model of a simulated user reads, roughly; 0 without one.
        user_response_tokens: Tokens of its messages, at most.
        kv_heads: Key-value heads of a layer: over more devices the KV cache is copied and not split; 0 if unknown.
        turns: What is kept of conversations from one turn to the next.
        weights: Whether the weights of all layers are held, or those of two at a time.
    """

    prompt_tokens: int
    response_tokens: int
    canary_tokens: int
    stored_bytes: int
    stored_token_bytes: int
    objects: int
    weight_bytes: int
    cache_bytes: int
    rows_per_batch: int
    row_tokens: int
    capture_bytes: int
    held_token_bytes: int
    rows_per_assignment: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    engine: Engine = "builtin"
    step_bytes: int = 0
    kv_heads: int = 0
    user_prompt_tokens: int = 0
    user_response_tokens: int = 0
    turns: TurnCache = NOTHING_KEPT
    weights: Weights = "resident"

    @property
    def gpus_per_replica(self) -> int:
        """Devices of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def device_bytes(self) -> int:
        """Bytes of memory that each device of a replica needs, see :func:`device_bytes`."""
        return device_bytes(self, self.tensor_parallel)

    @property
    def replica_bytes(self) -> int:
        """Bytes of memory that one replica needs, all its devices together."""
        return self.gpus_per_replica * self.device_bytes

    @property
    def machine_bytes(self) -> int:
        """Bytes of memory that one replica needs on a CPU, where main memory holds kept tokens too."""
        return self.replica_bytes + self.held_token_bytes


def estimate(plan: Plan, engine: Engine = "builtin", weights: Weights = "resident") -> Estimate:
    """Estimate the size of a plan.

    Args:
        plan: The plan.
        engine: Engine that runs it.
        weights: Whether it holds the weights of all layers; only the built-in engine can do without.

    Example:
        >>> from persona_atlas import estimate, plan
        >>> estimate(plan("job.yaml")).response_tokens
        112
    """
    spec, facts = plan.spec, plan.facts
    texts = plan.source.token_counts(plan.units)
    rollouts = plan.num_rollouts
    hook_points = len(spec.capture.hook_points)
    arrays = hook_points * len(spec.capture.poolings)
    vector_values = hook_points * len(spec.capture.pooled) * len(plan.layers) * facts.d_model
    token_values = hook_points * len(plan.token_layers) * facts.d_model
    bytes_per_value = stored_bytes_per_value(spec.store.mantissa_bits)
    token_bytes = int(texts.response_tokens * token_values * bytes_per_value)
    width = parameter_bytes(plan)
    # vLLM's KV cache on GPUs is as large as the memory that is left; what a batch must have is the default's.
    budget = batch_tokens(spec.placement)
    turns = _turn_cache(plan, texts, engine)
    rows = _rows_per_batch(plan, texts.row_tokens, engine, weights)
    rows = max(1, int(rows * (1 - turns.share)))
    slots = rows + VLLM_READING_SLOTS if engine == "vllm" else rows
    held = rows + UNITS_HELD * plan.rows_per_block
    return Estimate(
        prompt_tokens=texts.prompt_tokens,
        response_tokens=texts.response_tokens,
        canary_tokens=_num_canaries(plan) * texts.row_tokens,
        stored_bytes=int(rollouts * vector_values * bytes_per_value) + token_bytes,
        stored_token_bytes=token_bytes,
        objects=len(plan.units) * (arrays + 2),
        weight_bytes=_weight_bytes(plan, engine) if weights == "resident" else streamed_bytes(plan),
        cache_bytes=budget * facts.kv_values_per_token * width if generates_here(plan) else 0,
        rows_per_batch=rows,
        row_tokens=texts.row_tokens,
        capture_bytes=slots * vector_values * 4,
        held_token_bytes=int(held * texts.response_tokens / max(1, rollouts)) * token_values * 4,
        rows_per_assignment=_rows_per_assignment(plan, rows),
        tensor_parallel=spec.placement.tensor_parallel,
        pipeline_parallel=spec.placement.pipeline_parallel,
        engine=engine,
        step_bytes=VLLM_MAX_NUM_BATCHED_TOKENS * len(plan.layers) * facts.d_model * width if engine == "vllm" else 0,
        kv_heads=facts.num_kv_heads,
        user_prompt_tokens=texts.user_prompt_tokens,
        user_response_tokens=texts.user_response_tokens,
        turns=turns,
        weights=weights,
    )


def generates_here(plan: Plan) -> bool:
    """Whether the job's own workers generate: texts are neither given nor generated by a server."""
    return plan.source.generates and plan.spec.generation is None


def runs_texts_alone(plan: Plan, engine: Engine) -> bool:
    """Whether an engine is known to have a forward pass for every text of the plan's model.

    Args:
        plan: The plan.
        engine: The engine; only the built-in one has such models.
    """
    facts = plan.facts
    return engine == "builtin" and (facts.family in FAMILIES_RUN_ALONE or bool(facts.other_layers))


def layer_bytes(plan: Plan) -> int:
    """Return the bytes of the largest decoder layer, in the type that is computed in.

    Args:
        plan: The plan. Where the facts of its model do not tell, all parameters are divided among the layers.
    """
    facts = plan.facts
    return (facts.layer_parameters or facts.num_parameters // facts.n_layers) * parameter_bytes(plan)


def streamed_bytes(plan: Plan) -> int:
    """Return the bytes of weights that are held where layers are loaded in turn, and of the tokens of a walk.

    Args:
        plan: The plan.
    """
    # The LM head is counted although it is not loaded, because the facts do not tell it from the embeddings. Where they
    # tell nothing, embeddings are taken to be as large as two layers.
    is_known = plan.facts.layer_parameters > 0
    outside = plan.facts.outside_parameters * parameter_bytes(plan) if is_known else 2 * layer_bytes(plan)
    tokens = plan.spec.placement.batch_tokens or ASSUMED_WALK_TOKENS
    # The stream of a token, once more while a layer makes the next, and as much for rotary embeddings and positions.
    return outside + 2 * layer_bytes(plan) + 3 * tokens * plan.facts.d_model * parameter_bytes(plan)


def _weight_bytes(plan: Plan, engine: Engine) -> int:
    """Return the bytes of the weights: vLLM computes with quantised ones, the built-in engine with plain ones."""
    if engine == "vllm" and plan.facts.quantized_bytes:
        return plan.facts.quantized_bytes
    return plan.facts.num_parameters * parameter_bytes(plan)


def _turn_cache(plan: Plan, texts: TokenCounts, engine: Engine) -> TurnCache:
    """Decide what is kept between turns: vLLM has a prefix cache of its own, which is not counted."""
    is_possible = engine == "builtin" and generates_here(plan) and not runs_texts_alone(plan, engine)
    return turn_cache(plan, texts) if is_possible else NOTHING_KEPT


def _rows_per_batch(plan: Plan, row_tokens: int, engine: Engine, weights: Weights) -> int:
    if weights == "streamed":
        # Texts that are read alone are walked together, too.
        return max(1, (plan.spec.placement.batch_tokens or ASSUMED_WALK_TOKENS) // max(1, row_tokens))
    if runs_texts_alone(plan, engine):
        return 1
    if engine == "vllm":
        tokens = batch_tokens(plan.spec.placement, engine, plan.spec.placement.device)
        return max(1, min(VLLM_MAX_NUM_SEQS, tokens // plan.spec.sampling.max_new_tokens))
    return max(1, batch_tokens(plan.spec.placement) // max(1, row_tokens))


def _num_canaries(plan: Plan) -> int:
    rule = plan.spec.capture.canary
    if rule.check == "none":
        return 0
    sampled = -(-plan.num_rollouts // rule.one_in)
    if rule.check == "every_unit":
        return max(sampled, len(plan.units))
    # Each replica compares two rollouts of its first unit as well.
    return min(plan.num_rollouts, sampled + 2 * (plan.spec.placement.replicas or 1))


def _rows_per_assignment(plan: Plan, rows_per_batch: int) -> int:
    if not plan.source.generates:
        return 2 * rows_per_batch
    generation = plan.spec.generation
    return max(1, rows_per_batch // 2, generation.concurrency if generation is not None else 0)


def device_bytes(figures: Estimate, tensor_parallel: int) -> int:
    """Compute the bytes of memory that each device of a replica needs.

    Weights are split evenly over the devices, and so is the KV cache up to the number of key-value heads. The built-in
    engine has one device; vLLM's devices divide the sums among them, and each has the states of all layers of its stage
    in a step. A fifth is added for activations and fragmentation.

    Args:
        figures: Estimate of the plan; its own ``tensor_parallel`` is ignored.
        tensor_parallel: Devices among which each decoder layer is split.
    """
    stages = figures.pipeline_parallel
    weights = figures.weight_bytes / tensor_parallel / stages
    cache = figures.cache_bytes / cache_parts(figures, tensor_parallel)
    return int(HEADROOM * (weights + cache + captured_bytes(figures, tensor_parallel)))


def captured_bytes(figures: Estimate, tensor_parallel: int) -> float:
    """Compute the bytes that capturing takes on each device of a replica.

    Args:
        figures: Estimate of the plan; its own ``tensor_parallel`` is ignored.
        tensor_parallel: Devices among which each decoder layer is split.
    """
    if figures.engine == "builtin":
        return figures.capture_bytes
    return (figures.capture_bytes / tensor_parallel + figures.step_bytes) / figures.pipeline_parallel


def cache_parts(figures: Estimate, tensor_parallel: int) -> int:
    """Return into how many parts the KV cache is split: copies of one key-value head are not fewer bytes.

    Args:
        figures: Estimate of the plan; its own ``tensor_parallel`` is ignored.
        tensor_parallel: Devices among which each decoder layer is split.
    """
    return min(tensor_parallel, figures.kv_heads or tensor_parallel) * figures.pipeline_parallel


def batch_tokens(placement: PlacementSpec, engine: Engine = "builtin", device: str = "cpu") -> int:
    """Return the most tokens of one batch.

    Args:
        placement: The placement; its ``batch_tokens`` counts where it is set.
        engine: Engine that runs the batch.
        device: ``cpu``, ``cuda`` or ``auto``, where a replica runs.

    Returns:
        By default ``DEFAULT_VLLM_TOKENS`` for vLLM on GPUs, whose scheduler admits what its KV cache has room for; else
        ``DEFAULT_BATCH_TOKENS``.
    """
    default = DEFAULT_VLLM_TOKENS if engine == "vllm" and device != "cpu" else DEFAULT_BATCH_TOKENS
    return placement.batch_tokens or default


def parameter_bytes(plan: Plan) -> int:
    """Return the bytes of one parameter, which are also those of one value of the KV cache."""
    return BYTES_PER_PARAMETER[resolved_dtype(plan.spec.model.dtype, plan.facts.dtype)]


def resolved_dtype(asked: str, checkpoint: str) -> str:
    """Resolve the type of the parameters.

    Args:
        asked: ``model.dtype`` of the spec; ``auto`` is the checkpoint's type.
        checkpoint: Type of the checkpoint; float32 replaces a type that no engine computes in.

    Example:
        >>> resolved_dtype("auto", "bfloat16"), resolved_dtype("float32", "bfloat16"), resolved_dtype("auto", "float64")
        ('bfloat16', 'float32', 'float32')
    """
    dtype = checkpoint if asked == "auto" else asked
    return dtype if dtype in BYTES_PER_PARAMETER else "float32"
