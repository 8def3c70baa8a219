"""Replies of made-up conversations, in memory with projections that are given, or as a store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from persona_atlas.analysis.dialogues.turns import Turns, reply_numbers

from conversations import conversation, given_plan
from stored_runs import store_run


def made_turns(
    conversations: Sequence[tuple[str, npt.ArrayLike]],
    *,
    user: Sequence[str] | None = None,
    prompts: Sequence[int] | None = None,
    extra: Sequence[Mapping[str, Any]] | None = None,
) -> Turns:
    """Make the replies of conversations.

    Args:
        conversations: Group and projections of each; NaN for an empty reply.
        user: The user's message before each reply; else made up.
        prompts: Prompt index of each conversation; else 0.
        extra: Additional keys of each conversation; else none.
    """
    values = [np.asarray(given, np.float64) for _, given in conversations]
    lengths = [len(line) for line in values]
    index_N = np.repeat(np.arange(len(conversations)), lengths)
    turn_N = np.concatenate([2 * np.arange(length) + 1 for length in lengths])
    values_N = np.concatenate(values)
    places: list[int] = index_N.tolist()
    texts = [f"message {turn} of {index}" for index, turn in zip(index_N, turn_N, strict=True)]
    return Turns(
        layers=(2,),
        conversation_index=index_N,
        turn_index=turn_N,
        reply_number=reply_numbers(index_N, turn_N),
        group=np.array([conversations[index][0] for index in places], dtype=object),
        prompt_index=np.array([prompts[index] if prompts else 0 for index in places]),
        question_index=index_N.copy(),
        sample_index=np.zeros(len(index_N), np.int64),
        row=np.arange(len(index_N)),
        user=np.array(texts if user is None else list(user), dtype=object),
        response=np.array([f"reply {turn} of {index}" for index, turn in zip(index_N, turn_N, strict=True)], object),
        extra=np.array([json.dumps(extra[index]) if extra else "{}" for index in places], dtype=object),
        projections_NL=values_N[:, None],
    )


def store_of_talks(url: str) -> str:
    """Write a run of six given conversations in two groups, of two to four replies, with FakeEngine's vectors."""
    talks = []
    for index in range(6):
        texts = [f"{who} {turn} of {index}" for turn in range(2 + index % 3) for who in ("question", "answer")]
        made = conversation(*texts, index=index)
        persona, topic = ("coding", "therapy")[index % 2], ("loops", "sleep", "work")[index % 3]
        talks.append(replace(made, persona=persona, extra=json.dumps({"topic": topic})))
    return store_run(url, given_plan(*talks)).url
