"""Estimate the tokens, bytes and memory of a plan by fixed rules of thumb. Knows nothing of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Plan
from ..specs.spec_parts import PlacementSpec
from ..work.unit_size import stored_bytes_per_value

BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float16": 2}

HEADROOM = 1.2
"""Memory in relation to weights, KV cache and captured sums; the rest is activations and fragmentation."""

UNITS_HELD = 4
"""Units that are held in memory because some of their rollouts are unfinished or they are not written yet."""

DEFAULT_BATCH_TOKENS = 12_288
"""Tokens of a batch by default: about 90 short rollouts, beyond which decoding on a CPU gains little."""


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
        weight_bytes: Bytes of the weights of one replica, all its devices together.
        cache_bytes: Bytes of the KV cache of one batch, all devices together; 0 for given texts, which need none.
        rows_per_batch: Rollouts that fit in one batch, roughly.
        row_tokens: Tokens of the longest rollout, prompt and response; of given texts of a mean one.
        capture_bytes: Bytes of the pooled sums of one batch, float32.
        held_token_bytes: Bytes of kept tokens in main memory, not on the device: those of running rollouts and of
            units that are not written yet, float32.
        rows_per_assignment: Rollouts that a worker is assigned at a time, roughly: half a batch, because workers
            request more before their batch runs empty; two batches of given texts, so that more of them share a
            prefix; at least the concurrency of a server.
        tensor_parallel: Devices of one replica.
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

    @property
    def device_bytes(self) -> int:
        """Bytes of memory that each device of a replica needs, see :func:`device_bytes`."""
        return device_bytes(self, self.tensor_parallel)

    @property
    def replica_bytes(self) -> int:
        """Bytes of memory that one replica needs, all its devices together."""
        return self.tensor_parallel * self.device_bytes

    @property
    def machine_bytes(self) -> int:
        """Bytes of memory that one replica needs on a CPU, where main memory holds kept tokens too."""
        return self.replica_bytes + self.held_token_bytes


def estimate(plan: Plan) -> Estimate:
    """Estimate the size of a plan.

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
    budget = batch_tokens(spec.placement)
    rows = max(1, budget // max(1, texts.row_tokens))
    held = rows + UNITS_HELD * plan.rows_per_block
    return Estimate(
        prompt_tokens=texts.prompt_tokens,
        response_tokens=texts.response_tokens,
        canary_tokens=_num_canaries(plan) * texts.row_tokens,
        stored_bytes=int(rollouts * vector_values * bytes_per_value) + token_bytes,
        stored_token_bytes=token_bytes,
        objects=len(plan.units) * (arrays + 2),
        weight_bytes=facts.num_parameters * width,
        cache_bytes=budget * facts.kv_values_per_token * width if plan.source.generates else 0,
        rows_per_batch=rows,
        row_tokens=texts.row_tokens,
        capture_bytes=rows * vector_values * 4,
        held_token_bytes=int(held * texts.response_tokens / max(1, rollouts)) * token_values * 4,
        rows_per_assignment=_rows_per_assignment(plan, rows),
        tensor_parallel=spec.placement.tensor_parallel,
    )


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

    Weights and KV cache are split evenly over the devices. The residual stream is whole on every one, and so are the
    sums that are captured from it. A fifth is added for activations and fragmentation.

    Args:
        figures: Estimate of the plan; its own ``tensor_parallel`` is ignored.
        tensor_parallel: Devices of a replica.
    """
    sliced = (figures.weight_bytes + figures.cache_bytes) / tensor_parallel
    return int(HEADROOM * (sliced + figures.capture_bytes))


def batch_tokens(placement: PlacementSpec) -> int:
    """Return the most tokens of one batch, by default ``DEFAULT_BATCH_TOKENS``."""
    return placement.batch_tokens or DEFAULT_BATCH_TOKENS


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
