"""The error tree: what a caller can tell from an error, also after it crossed a process boundary."""

from __future__ import annotations

import pickle

import pytest
from persona_atlas.jobs.errors import AtlasError, InputError, JobError, StoreError, TransientError, UnitError, closest

TREE = [AtlasError, InputError, StoreError, TransientError, UnitError, JobError]
FACTS = {"code": "because", "field": "store.url", "file": "spec.yaml", "hint": "Mend it."}


def test_every_class_of_the_tree_is_tested_here():
    assert {AtlasError, *AtlasError.__subclasses__()} == set(TREE)


@pytest.mark.parametrize("error_class", TREE)
@pytest.mark.parametrize("facts", [FACTS, {"code": "bare"}], ids=["all", "code_only"])
def test_an_error_travels_between_processes_with_all_it_knows(error_class: type[AtlasError], facts: dict[str, str]):
    sent = error_class("it broke.", **facts)
    come = pickle.loads(pickle.dumps(sent))  # noqa: S301 - our own bytes
    assert type(come) is error_class
    assert str(come) == str(sent)
    assert come.as_dict() == sent.as_dict() == {"error": "it broke.", **facts}


def test_an_error_says_the_place_the_rule_and_the_cure():
    assert str(InputError("is wrong.", **FACTS)) == "store.url: is wrong. Mend it."
    assert str(InputError("is wrong.", code="c", file="spec.yaml")) == "spec.yaml: is wrong."
    assert str(InputError("is wrong.", code="c")) == "is wrong."


def test_only_wrong_input_ends_with_status_2_and_only_passing_troubles_are_retryable():
    assert {c.__name__: c.exit_status for c in TREE if c.exit_status != 1} == {"InputError": 2}
    assert {c for c in TREE if c.retryable} == {TransientError}


def test_the_nearest_name_is_suggested_and_nothing_when_none_is_near():
    assert closest("pirat", ["poet", "pirate"]) == "Did you mean 'pirate'?"
    assert closest("xyz", ["poet", "pirate"]) == ""
