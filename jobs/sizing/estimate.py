"""What a plan will take: tokens, bytes, memory. Rules of thumb, stated; knows nothing of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Plan
from ..sources.conversation_source import GivenPlan
from ..spec import PlacementSpec
from ..unit_size import STORED_BYTES_PER_VALUE

TOKENS_PER_WORD = 1.35
"""English prose under the usual byte-pair vocabularies."""

TEMPLATE_TOKENS = 20
"""What a chat template adds around a system prompt and a question."""

BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float16": 2}

HEADROOM = 1.2
"""What a device needs over weights, cache and captured sums: activations, the allocator's waste."""

UNITS_HELD = 4
"""Units whose rollouts have ended, in part or all, and that are not written yet."""

DEFAULT_BATCH_TOKENS = 12_288
"""Tokens of one batch where the spec does not say: about 90 short rollouts, where decoding on a CPU levels off."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan in numbers.

    Attributes:
        prompt_tokens: Read, about.
        response_tokens: Written, at most; of given texts those that are read, about.
        canary_tokens: Read once more, at most: one rollout of every unit is recomputed the plain way.
        stored_bytes: Activations in the store, about, those of every token included; texts come to a few per cent.
        stored_token_bytes: Of that, every token of the layers of which they are kept, responses at their longest.
        objects: Objects in the store: per unit one per hook point and pooling, one of texts, one commit record.
        weight_bytes: Of one replica, all its devices together.
        cache_bytes: KV cache of one batch, likewise; a pass over given texts needs none.
        rows_per_batch: Rollouts that one batch holds, about.
        row_tokens: Prompt and response of the longest rollout.
        capture_bytes: Pooled sums of one batch, float32.
        held_token_bytes: Of the machine's memory and not the device's: every kept token of the rollouts under way and
            of the units that are put together or wait to be written, float32.
        rows_per_assignment: Rollouts handed out at a time, about: half a batch, for a worker that could begin more
            asks for it; of given texts two batches, so that those that begin alike are read in one go; as many as a
            server is asked for at once.
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
        """Memory that one device of a replica needs, see :func:`device_bytes`."""
        return device_bytes(self, self.tensor_parallel)

    @property
    def replica_bytes(self) -> int:
        """Memory that one replica needs, all its devices together."""
        return self.tensor_parallel * self.device_bytes

    @property
    def machine_bytes(self) -> int:
        """Memory that one replica needs where the machine's memory is its device."""
        return self.replica_bytes + self.held_token_bytes


def estimate(plan: Plan) -> Estimate:
    """Estimate what a plan takes.

    Args:
        plan: Its units, and the facts of its model.

    Returns:
        Tokens, bytes in the store and bytes of memory; rules of thumb, not measurements.

    Example:
        >>> from persona_atlas import estimate, plan
        >>> estimate(plan("job.yaml")).response_tokens
        112
    """
    spec, facts = plan.spec, plan.facts
    texts = _of_given(plan) if isinstance(plan, GivenPlan) else _of_personas(plan)
    rollouts = plan.num_rollouts
    hook_points = len(spec.capture.hook_points)
    arrays = hook_points * len(spec.capture.poolings)
    vector_values = hook_points * len(spec.capture.pooled) * len(plan.layers) * facts.d_model
    token_values = hook_points * len(plan.token_layers) * facts.d_model
    token_bytes = texts.response_tokens * token_values * STORED_BYTES_PER_VALUE
    width = parameter_bytes(plan)
    budget = batch_tokens(spec.placement)
    rows = max(1, budget // max(1, texts.row_tokens))
    held = rows + UNITS_HELD * plan.rows_per_block
    return Estimate(
        prompt_tokens=texts.prompt_tokens,
        response_tokens=texts.response_tokens,
        canary_tokens=len(plan.units) * texts.row_tokens,
        stored_bytes=rollouts * vector_values * STORED_BYTES_PER_VALUE + token_bytes,
        stored_token_bytes=token_bytes,
        objects=len(plan.units) * (arrays + 2),
        weight_bytes=facts.num_parameters * width,
        cache_bytes=0 if isinstance(plan, GivenPlan) else budget * facts.kv_values_per_token * width,
        rows_per_batch=rows,
        row_tokens=texts.row_tokens,
        capture_bytes=rows * vector_values * 4,
        held_token_bytes=int(held * texts.response_tokens / max(1, rollouts)) * token_values * 4,
        rows_per_assignment=_rows_per_assignment(plan, rows),
        tensor_parallel=spec.placement.tensor_parallel,
    )


def _rows_per_assignment(plan: Plan, rows_per_batch: int) -> int:
    if isinstance(plan, GivenPlan):
        return 2 * rows_per_batch
    generation = plan.spec.generation
    return max(1, rows_per_batch // 2, generation.concurrency if generation is not None else 0)


@dataclass(frozen=True, slots=True)
class _Texts:
    prompt_tokens: int
    response_tokens: int
    row_tokens: int


def _of_personas(plan: Plan) -> _Texts:
    """Every prompt, and every response as long as it may become; a row is the longest of them."""
    prompt_tokens = longest = 0
    for unit in plan.units:
        system_words = len(plan.system_prompt(unit).split())
        of_unit = [_prompt_tokens(system_words + len(question.split())) for question in plan.questions(unit)]
        prompt_tokens += unit.samples * sum(of_unit)
        longest = max(longest, *of_unit)
    new = plan.spec.sampling.max_new_tokens
    return _Texts(prompt_tokens, plan.num_rollouts * new, longest + new)


def _of_given(plan: GivenPlan) -> _Texts:
    """Every conversation once; a row is a mean one, for a pass is filled by tokens and not by rows."""
    prompt_tokens = response_tokens = 0
    for given in plan.conversations:
        prompt_tokens += _prompt_tokens(len(given.system_prompt.split()))
        for message in given.messages:
            tokens = int(len(message.content.split()) * TOKENS_PER_WORD)
            if message.role == "assistant":
                response_tokens += tokens
            else:
                prompt_tokens += tokens + TEMPLATE_TOKENS
    return _Texts(prompt_tokens, response_tokens, (prompt_tokens + response_tokens) // plan.num_rollouts)


def device_bytes(figures: Estimate, tensor_parallel: int) -> int:
    """Give the memory that each of a replica's devices needs, in bytes.

    Weights and cache are cut evenly; the residual stream, and so what is captured of it, is whole on every device.
    A fifth is added for activations and the allocator.

    Args:
        figures: Of the plan; its own ``tensor_parallel`` is not looked at.
        tensor_parallel: Devices of a replica.
    """
    sliced = (figures.weight_bytes + figures.cache_bytes) / tensor_parallel
    return int(HEADROOM * (sliced + figures.capture_bytes))


def _prompt_tokens(words: int) -> int:
    return int(words * TOKENS_PER_WORD) + TEMPLATE_TOKENS


def batch_tokens(placement: PlacementSpec) -> int:
    """Tokens that one batch may hold."""
    return placement.batch_tokens or DEFAULT_BATCH_TOKENS


def parameter_bytes(plan: Plan) -> int:
    """Bytes of one parameter, and of one value of the KV cache."""
    return BYTES_PER_PARAMETER[resolved_dtype(plan.spec.model.dtype, plan.facts.dtype)]


def resolved_dtype(asked: str, checkpoint: str) -> str:
    """Say which parameter type ``auto`` means: the checkpoint's own."""
    dtype = checkpoint if asked == "auto" else asked
    return dtype if dtype in BYTES_PER_PARAMETER else "float32"
