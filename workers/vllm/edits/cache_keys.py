"""Key vLLM's prefix cache by edits of responses.

A cache salt keys all of a request, and that is what edits of a prompt need. Edits of the response alone must not: the
prompt is that of every other request, and only what follows it is not. vLLM knows no salt that begins in the middle of
a request, but its scheduler asks one function for the hashes of a request's blocks, which is wrapped here. Does not
import vLLM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from ..versions import require_members
from .plan import EDITS_KEY, RequestEdits

BlockHasher = Callable[[Any], list[bytes]]
"""Returns the hashes of those full blocks of a request that it has none of yet."""


def key_blocks_by_edits(vllm: Any) -> None:
    """Let the prefix cache of a vLLM tell apart blocks that hold tokens of differently edited responses.

    Args:
        vllm: vLLM's engine, before its first request.

    Raises:
        InputError: A member of vLLM that this relies on is missing; names it.
    """
    require_members(vllm, ("engine_core",))
    require_members(vllm.engine_core, ("engine_core",))
    core = vllm.engine_core.engine_core
    require_members(core, ("request_block_hasher", "scheduler"))
    require_members(core.scheduler, ("hash_block_size",))
    if core.request_block_hasher is not None:
        core.request_block_hasher = keyed(core.request_block_hasher, core.scheduler.hash_block_size)


def keyed(hasher: BlockHasher, block_tokens: int) -> BlockHasher:
    """Wrap a function that hashes blocks.

    Args:
        hasher: vLLM's own.
        block_tokens: Tokens of one block.
    """

    def hash_blocks(request: Any) -> list[bytes]:
        first_block = len(request.block_hashes)
        hashes = hasher(request)
        asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(EDITS_KEY)
        if asked is None or not hashes:
            return hashes
        edits = RequestEdits.from_json(asked)
        if not edits.key:
            return hashes
        return [
            _mixed(one, edits.key) if (block + 1) * block_tokens > edits.response_start else one
            for block, one in enumerate(hashes, start=first_block)
        ]

    return hash_blocks


def _mixed(block_hash: bytes, key: str) -> bytes:
    return hashlib.sha256(block_hash + key.encode()).digest()[: len(block_hash)]
