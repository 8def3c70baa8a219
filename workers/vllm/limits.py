"""Refuse conversations that vLLM's KV cache has no room for."""

from __future__ import annotations

from ...jobs.errors import InputError, UnitError
from ..engine import EngineSettings

_MORE_ROOM = "give each replica more memory (more placement.tensor_parallel, or larger devices; on CPUs, more \
placement.batch_tokens)"


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
