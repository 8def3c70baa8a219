"""The error tree: exit statuses, messages, and pickling with all attributes."""

from __future__ import annotations

import pickle

import pytest
from persona_atlas.jobs.errors import (
    AtlasError,
    EngineDied,
    InputError,
    JobError,
    StoreError,
    TransientError,
    UnitError,
    closest,
)

TREE = [AtlasError, InputError, StoreError, TransientError, UnitError, EngineDied, JobError]
FIELDS = {"code": "because", "field": "store.url", "file": "spec.yaml", "hint": "Fix it."}


def test_every_class_of_the_tree_is_tested_here():
    assert {AtlasError, *AtlasError.__subclasses__()} == set(TREE)


@pytest.mark.parametrize("error_class", TREE)
@pytest.mark.parametrize("fields", [FIELDS, {"code": "bare"}], ids=["all", "code_only"])
def test_an_error_travels_between_processes_with_all_it_knows(error_class: type[AtlasError], fields: dict[str, str]):
    sent = error_class("it broke.", **fields)
    received = pickle.loads(pickle.dumps(sent))  # noqa: S301 - our own bytes
    assert type(received) is error_class
    assert str(received) == str(sent)
    assert received.as_dict() == sent.as_dict() == {"error": "it broke.", **fields}


def test_an_error_names_the_place_the_rule_and_the_fix():
    assert str(InputError("is wrong.", **FIELDS)) == "store.url: is wrong. Fix it."
    assert str(InputError("is wrong.", code="c", file="spec.yaml")) == "spec.yaml: is wrong."
    assert str(InputError("is wrong.", code="c")) == "is wrong."


def test_only_wrong_input_exits_with_2_and_only_transient_errors_are_retryable():
    assert {c.__name__: c.exit_status for c in TREE if c.exit_status != 1} == {"InputError": 2}
    assert {c for c in TREE if c.retryable} == {TransientError}


def test_the_nearest_name_is_suggested_and_nothing_when_none_is_near():
    assert closest("pirat", ["poet", "pirate"]) == "Did you mean 'pirate'?"
    assert closest("xyz", ["poet", "pirate"]) == ""
