"""What is kept between turns: for which jobs it pays, which share of a batch it takes, and how much it spares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.engines import Engine
from persona_atlas.jobs.plan import make_plan
from persona_atlas.jobs.sizing.estimate import Estimate, estimate
from persona_atlas.jobs.sizing.turn_cache import NOTHING_KEPT, TurnCache
from persona_atlas.jobs.sources.load import load_source
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.text_tokens import TEMPLATE_TOKENS

from fakes import FACTS

NEW, SAID, TALKS = 16, 20, 20


def figures(asked: dict[str, Any], engine: Engine = "builtin", family: str = "") -> Estimate:
    common = {
        "model": {"source": "none"},
        "sampling": {"max_new_tokens": NEW},
        "placement": {"batch_tokens": 16_384},
        "store": {"url": "x"},
    }
    spec = JobSpec.model_validate(common | asked)
    facts = replace(FACTS, max_context=100_000, family=family or FACTS.family)
    return estimate(make_plan(spec, load_source(spec), facts), engine)


def drift(exchanges: int = 15, user: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    plays = {"model": "same"} if user is None else user
    return {"drift": {"per_domain": 5, "exchanges": exchanges, "user": plays | {"max_new_tokens": SAID}}} | sections


def scripted(folder: Path, turns: int) -> dict[str, Any]:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"turns": ["Go on, please."] * turns}) + "\n" for _ in range(3)))
    return {"prompts": {"source": str(file)}}


def test_all_but_the_new_message_of_a_prompt_is_repeated():
    found = figures(drift())
    first = figures(drift(exchanges=1))
    assert found.turns.tokens == found.prompt_tokens - first.prompt_tokens - TALKS * 14 * SAID
    # The side of the user: the model's reply is new there.
    new = TALKS * 14 * (NEW + TEMPLATE_TOKENS)
    assert found.turns.user_tokens == found.user_prompt_tokens - first.user_prompt_tokens - new


def test_half_of_a_batch_is_for_conversations_that_wait_for_the_user_and_less_where_none_waits(tmp_path: Path):
    both = figures(drift())
    assert both.turns.share == 0.5
    assert both.rows_per_batch == 16_384 // both.row_tokens // 2
    alone = figures(scripted(tmp_path, 30))
    assert alone.turns.share == 0.125
    assert alone.turns.user_tokens == 0


def test_nothing_is_kept_where_little_is_repeated(tmp_path: Path):
    assert figures(drift(exchanges=1)).turns == NOTHING_KEPT
    assert figures(scripted(tmp_path, 1)).turns == NOTHING_KEPT
    two = figures(scripted(tmp_path, 2))
    assert two.turns == NOTHING_KEPT
    assert two.rows_per_batch == 16_384 // two.row_tokens


@pytest.mark.parametrize(
    ("asked", "engine", "family"),
    [
        (drift(), "vllm", ""),
        (drift(), "builtin", "bloom"),
        (drift(capture={"poolings": ["response_mean", "prompt_mean"]}), "builtin", ""),
    ],
    ids=["vLLM has a cache of its own", "texts run alone", "every token of a prompt counts"],
)
def test_nothing_is_kept_where_it_cannot_be(asked: dict[str, Any], engine: Engine, family: str):
    assert figures(asked, engine, family).turns == NOTHING_KEPT


def test_a_user_elsewhere_keeps_for_itself():
    server = figures(drift(user={"endpoint": "http://localhost:1/v1", "model": "user"})).turns
    assert (server.share, server.user_share, server.user_tokens) == (0.5, 0.0, 0)
    own = figures(drift(user={"model": "other"})).turns
    assert (own.share, own.user_share) == (0.5, 0.5)
    # Its engine captures no prompt.
    every = figures(drift(user={"model": "other"}, capture={"poolings": ["prompt_mean"]})).turns
    assert every == TurnCache(0.0, 0.5, 0, own.user_tokens)
