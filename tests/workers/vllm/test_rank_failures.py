"""Why a rank could not be started reaches the process that started it."""

from __future__ import annotations

import multiprocessing
import os

import pytest
from persona_atlas.workers.vllm.rank_failures import RankFailures, told


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
        assert failures.first == "ValueError: no memory is left"


def test_an_error_is_raised_again_and_written_only_where_somebody_collects():
    before = dict(os.environ)
    with pytest.raises(ValueError, match="no memory"):
        failing("no memory")
    with RankFailures(), pytest.raises(ValueError, match="no memory"):
        failing("no memory")
    assert dict(os.environ) == before
