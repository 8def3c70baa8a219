"""Why a rank could not be started reaches the process that started it."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from persona_atlas.workers.vllm.rank_failures import RankFailures, told
from persona_atlas.workers.vllm.ranks import unlink_shared_memory


def failing(reason: str) -> None:
    with told():
        raise ValueError(reason)


def test_the_first_failure_of_a_rank_is_known_after_it_is_gone():
    context = multiprocessing.get_context("spawn")
    with RankFailures() as failures:
        assert failures.first is None
        for reason in ("no memory is left", "a peer is gone"):
            rank = context.Process(target=failing, args=(reason,))
            rank.start()
            rank.join(60)
        assert failures.first is not None
        assert (failures.first.text, failures.first.refusal) == ("ValueError: no memory is left", None)


def failing_with_memory() -> None:
    with told():
        memory = SharedMemory(create=True, size=4096)
        # It belongs to nobody else, as what vLLM's own code creates.
        resource_tracker.unregister(f"/{memory.name}", "shared_memory")
        raise ValueError(memory.name)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="the system does not show its shared memory")
def test_what_a_dead_rank_had_mapped_is_known():
    with RankFailures() as failures:
        assert not failures.shared_memory
        rank = multiprocessing.get_context("spawn").Process(target=failing_with_memory)
        rank.start()
        rank.join(60)
        assert failures.first is not None
        memory = Path("/dev/shm", failures.first.text.removeprefix("ValueError: "))
        assert memory.exists()
        assert failures.shared_memory == {memory}
        unlink_shared_memory(failures.shared_memory)
        assert not memory.exists()


def test_an_error_is_raised_again_and_written_only_where_somebody_collects():
    before = dict(os.environ)
    with pytest.raises(ValueError, match="no memory"):
        failing("no memory")
    with RankFailures(), pytest.raises(ValueError, match="no memory"):
        failing("no memory")
    assert dict(os.environ) == before
