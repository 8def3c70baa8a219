"""Whether a model fits, and what is said when it does not."""

from __future__ import annotations

import re

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.models import memory


def test_what_fits_is_let_through():
    memory.require_memory(1, 2, "cpu")


def test_what_does_not_fit_is_refused_with_both_figures():
    with pytest.raises(InputError) as caught:
        memory.require_memory(10**15, 1, "cpu")
    assert caught.value.field == "model.source"
    assert caught.value.code == "not_enough_memory"
    assert re.search(r"^1 replica\(s\) need 1000000\.0 GB of cpu memory; \d+\.\d GB is free\.$", caught.value.message)
    assert "placement.batch_tokens" in str(caught.value)
    assert "fewer" not in str(caught.value)


def test_copies_count_together_and_fewer_of_them_are_the_first_cure():
    each = memory.free_bytes("cpu") * 2 // 3
    memory.require_memory(each, 1, "cpu")
    with pytest.raises(InputError) as caught:
        memory.require_memory(each, 2, "cpu")
    assert caught.value.field == "placement.replicas"
    assert str(caught.value.hint).startswith("Try fewer placement.replicas")
