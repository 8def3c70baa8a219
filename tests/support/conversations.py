"""Conversations for tests: made in memory, or written as a user's file would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persona_atlas.jobs.model_facts import ModelFacts
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.sources.conversation import Conversation, Message
from persona_atlas.jobs.sources.conversation_source import ConversationSource
from persona_atlas.jobs.spec import JobSpec

from fakes import FACTS


def conversation(*said: str, system_prompt: str = "", index: int = 0, begins: int = 0) -> Conversation:
    """User and assistant in turn; ``begins=1`` lets the assistant speak first."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[(place + begins) % 2], text) for place, text in enumerate(said))
    place = f"talks.jsonl, line {index + 1}"
    return Conversation("conversation", "talks", "pos", 0, index, 0, index, system_prompt, messages, "{}", place)


def given_plan(*talks: Conversation, facts: ModelFacts = FACTS, **changes: Any) -> Plan:
    """The plan of a spec that reads conversations."""
    data = {"model": {"source": "none"}, "conversations": {"source": "talks.jsonl"}, "store": {"url": "unused"}}
    return make_plan(JobSpec.model_validate(data | changes), ConversationSource(talks), facts)


def line(*said: str, system_prompt: str | None = None, **extra: Any) -> dict[str, Any]:
    """A line of a JSONL file."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return {"messages": messages} | extra


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(value) + "\n" for value in lines))
    return path
