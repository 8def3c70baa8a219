"""What vLLM cannot do as a job asks for it: refusals by the field of the spec, where vLLM would do something else."""

from __future__ import annotations

from ...jobs.engines import VLLM_HOOK_POINT
from ...jobs.errors import InputError, UnitError
from ..engine import EngineSettings

MIN_TEMPERATURE = 0.01
"""Lowest temperature other than 0 that vLLM samples at; it raises a lower one to this."""

_MORE_ROOM = "give each replica more memory (more placement.tensor_parallel, or larger devices; on CPUs, more \
placement.batch_tokens)"


def require_hook_points(settings: EngineSettings) -> None:
    """Refuse hook points that the engine does not capture.

    Args:
        settings: What to capture.

    Raises:
        InputError: There is one.
    """
    others = [point for point in settings.capture.hook_points if point != VLLM_HOOK_POINT]
    if others:
        raise InputError(
            f"asks for {', '.join(others)}, but the vLLM engine captures {VLLM_HOOK_POINT} only.",
            code="no_hook_point",
            field="capture.hook_points",
            hint=f"Capture {VLLM_HOOK_POINT}, or set placement.engine to builtin.",
        )


def require_temperature(settings: EngineSettings) -> None:
    """Refuse a temperature that vLLM would replace.

    Args:
        settings: How to sample.

    Raises:
        InputError: It would.
    """
    temperature = settings.sampling.temperature
    if 0 < temperature < MIN_TEMPERATURE:
        raise InputError(
            f"is {temperature}, but vLLM samples at {MIN_TEMPERATURE} or more, or greedily.",
            code="low_temperature",
            field="sampling.temperature",
            hint=f"Set it to 0 or to at least {MIN_TEMPERATURE}, or set placement.engine to builtin.",
        )


def require_room(settings: EngineSettings, max_context: int, most: int) -> None:
    """Refuse a KV cache in which no response can reach its limit, after whatever prompt.

    Args:
        settings: The limit.
        max_context: Longest conversation that the model takes, in tokens.
        most: Most tokens that one conversation can have in the cache.

    Raises:
        InputError: It is too small.
    """
    # A prompt has a token at least. What the model itself has no context for is refused request by request.
    wanted = settings.sampling.max_new_tokens
    if most <= wanted < max_context:
        raise InputError(
            f"is {wanted}, but vLLM's KV cache has room for conversations of {most} tokens only, prompts included.",
            code="kv_cache_too_small",
            field="sampling.max_new_tokens",
            hint=f"Set it to less than {most}, or {_MORE_ROOM}.",
        )


def no_room(name: str, wanted: int, most: int) -> UnitError:
    """Make the error of a conversation that the KV cache has no room for.

    Args:
        name: The rollout or the text.
        wanted: Tokens that it may have.
        most: Most tokens that one conversation can have in the cache.
    """
    return UnitError(
        f"{name}: its {wanted} tokens exceed the {most} that vLLM's KV cache has room for in one conversation.",
        code="kv_cache_too_small",
        hint=f"Shorten it, lower sampling.max_new_tokens, or {_MORE_ROOM}.",
    )
