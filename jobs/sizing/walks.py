"""How many tokens are read at a time where a model's weights are loaded layer by layer. Pure arithmetic.

Of every layer, loading takes bytes over bandwidth, whatever the number of tokens; computing takes the same for every
token. So there is a number of tokens at which both take equally long, and above it, loading costs no time of its own.
"""

from __future__ import annotations

from typing import Literal

LEAST_WALK_TOKENS = 4096
"""Tokens of a walk at least: with fewer, what a walk costs besides its layers would show."""

SPARE: dict[Literal["cpu", "cuda"], float] = {"cuda": 1.5, "cpu": 16.0}
"""Times by which computing a layer should take longer than loading it. A GPU fetches and computes at the same time; on
a CPU, copying takes a core away from computing."""

MOST_WALK_TOKENS = 2**20
"""Tokens of a walk at most: beyond, a failure would lose too much."""


def walk_tokens(load_s: float, token_s: float, device: Literal["cpu", "cuda"], most: float = MOST_WALK_TOKENS) -> int:
    """Compute how many tokens should be read at a time.

    Args:
        load_s: Seconds in which a layer is loaded.
        token_s: Seconds in which a layer is computed for one token.
        device: Where it is computed.
        most: Tokens that the memory has room for.

    Returns:
        Tokens, a multiple of 1024 unless the memory decides; at least 1024.

    Example:
        >>> walk_tokens(load_s=0.07, token_s=4e-6, device="cuda")
        26624
        >>> walk_tokens(load_s=0.07, token_s=4e-6, device="cuda", most=20_000)
        20000
    """
    wanted = -(-SPARE[device] * load_s / token_s // 1024) * 1024
    return int(max(1024, min(max(wanted, LEAST_WALK_TOKENS), most, MOST_WALK_TOKENS)))
