"""Over how many devices vLLM can split a model. Pure: from the sizes in its configuration.

Tensor parallel gives each device whole attention heads and a slice of every MLP; pipeline parallel gives each stage
whole decoder layers.
"""

from __future__ import annotations

from ..errors import InputError
from ..model_facts import ModelFacts
from ..specs.spec_parts import PlacementSpec


def tensor_parallel_sizes(facts: ModelFacts, most: int, *, shares_kv_heads: bool = True) -> list[int]:
    """Find the tensor parallel sizes that a model allows, ascending.

    A size must divide the attention heads and the inner width of the MLPs. It must divide the key-value heads as well
    or, where devices may hold copies of the same key-value head, be a multiple of them.

    Args:
        facts: The model; powers of two are returned where its number of heads is unknown.
        most: Largest size to return.
        shares_kv_heads: Whether devices may hold copies of the same key-value head.

    Example:
        >>> from persona_atlas.jobs.sizing.known_models import known_models
        >>> tensor_parallel_sizes(known_models()["Qwen/Qwen3-32B"], most=16)
        [1, 2, 4, 8, 16]
    """
    if not facts.num_attention_heads:
        return [2**power for power in range(most.bit_length()) if 2**power <= most]
    return [
        size
        for size in range(1, min(most, facts.num_attention_heads) + 1)
        if facts.num_attention_heads % size == 0
        and facts.mlp_width % size == 0
        and _divides_kv_heads(size, facts.num_kv_heads or facts.num_attention_heads, shares=shares_kv_heads)
    ]


def require_parallel(placement: PlacementSpec, facts: ModelFacts, *, shares_kv_heads: bool = True) -> None:
    """Refuse a split that a model does not allow.

    Args:
        placement: The placement, with the sizes of the split.
        facts: The model.
        shares_kv_heads: Whether devices may hold copies of the same key-value head.

    Raises:
        InputError: ``tensor_parallel`` does not divide the model's heads or MLPs, or there are more pipeline stages
            than decoder layers; names the sizes that work.
    """
    size, heads = placement.tensor_parallel, facts.num_attention_heads
    if heads:
        sizes = tensor_parallel_sizes(facts, heads, shares_kv_heads=shares_kv_heads)
        if size not in sizes:
            raise InputError(
                f"is {size}, which does not split a model of {heads} attention heads, {facts.num_kv_heads} key-value "
                f"heads and MLPs of width {facts.mlp_width}.",
                code="does_not_split",
                field="placement.tensor_parallel",
                hint=f"Sizes that do: {', '.join(map(str, sizes))}.",
            )
    if placement.pipeline_parallel > facts.n_layers:
        raise InputError(
            f"is {placement.pipeline_parallel} stages, but the model has {facts.n_layers} decoder layers.",
            code="does_not_split",
            field="placement.pipeline_parallel",
            hint=f"Set it to at most {facts.n_layers}.",
        )


def _divides_kv_heads(size: int, kv_heads: int, *, shares: bool) -> bool:
    return kv_heads % size == 0 or (shares and size % kv_heads == 0)
