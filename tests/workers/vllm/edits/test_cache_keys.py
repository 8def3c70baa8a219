"""Which blocks of vLLM's prefix cache two requests share. Its hashes are a stand-in, chained as vLLM's are."""

from __future__ import annotations

from types import SimpleNamespace as Some

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.vllm.edits.cache_keys import key_blocks_by_edits, keyed
from persona_atlas.workers.vllm.edits.plan import EDITS_KEY, RequestEdits

BLOCK = 4


def chained(request) -> list[bytes]:
    hashes = list(request.block_hashes)
    new = []
    for end in range(BLOCK * (len(hashes) + 1), len(request.tokens) + 1, BLOCK):
        parent = (new or hashes or [b""])[-1]
        new.append(str(hash((parent, tuple(request.tokens[end - BLOCK : end])))).encode().ljust(32)[:32])
    return new


def hashes(tokens: int, *, key: str = "", response_start: int = 0, grown_from: int | None = None) -> list[bytes]:
    edits = {EDITS_KEY: RequestEdits(1, 2, response_start, key).to_json()} if key else None
    request = Some(tokens=[], block_hashes=[], sampling_params=Some(extra_args=edits))
    for length in [grown_from or tokens, tokens]:
        request.tokens = list(range(length))
        request.block_hashes += keyed(chained, BLOCK)(request)
    return request.block_hashes


def shared(one: list[bytes], other: list[bytes]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def test_blocks_are_shared_up_to_the_first_token_of_an_edited_response():
    plain = hashes(20)
    for start, whole in [(0, 0), (3, 0), (4, 1), (5, 1), (12, 3), (19, 4), (20, 5)]:
        assert shared(plain, hashes(20, key="a", response_start=start)) == whole
    assert shared(plain, hashes(20, key="a", response_start=9, grown_from=11)) == 2, "as the response grows"


def test_equal_edits_share_all_and_others_nothing_of_the_response():
    one = hashes(20, key="a", response_start=6, grown_from=9)
    assert shared(one, hashes(20, key="a", response_start=6, grown_from=9)) == 5
    assert shared(one, hashes(20, key="b", response_start=6, grown_from=9)) == 1
    assert len({len(block) for block in one}) == 1


def test_a_vllm_without_what_is_relied_on_is_refused_by_that_name():
    core = Some(request_block_hasher=chained, scheduler=Some(hash_block_size=BLOCK))
    key_blocks_by_edits(Some(engine_core=Some(engine_core=core)))
    assert core.request_block_hasher is not chained
    del core.scheduler.hash_block_size
    with pytest.raises(InputError, match="hash_block_size") as caught:
        key_blocks_by_edits(Some(engine_core=Some(engine_core=core)))
    assert caught.value.code == "unknown_vllm"
