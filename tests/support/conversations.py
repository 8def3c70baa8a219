"""Conversations for tests, in memory or as lines of a JSONL file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persona_atlas.jobs.conversation import Conversation, Message
from persona_atlas.jobs.model_facts import ModelFacts
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.sources.conversation_source import ConversationSource
from persona_atlas.jobs.specs.spec import JobSpec

from fakes import FACTS


def conversation(*texts: str, system_prompt: str = "", index: int = 0, begins: int = 0) -> Conversation:
    """Make a conversation whose messages alternate between user and assistant.

    Args:
        *texts: Messages.
        system_prompt: Empty for none.
        index: 0-based line of the conversation.
        begins: Role of the first message: 0 user, 1 assistant.
    """
    roles = ("user", "assistant")
    messages = tuple(Message(roles[(place + begins) % 2], text) for place, text in enumerate(texts))
    place = f"talks.jsonl, line {index + 1}"
    return Conversation("conversation", "talks", "pos", 0, index, 0, index, system_prompt, messages, "{}", place)


def given_plan(*talks: Conversation, facts: ModelFacts = FACTS, **changes: Any) -> Plan:
    """The plan of a spec that reads conversations."""
    data = {"model": {"source": "none"}, "conversations": {"source": "talks.jsonl"}, "store": {"url": "unused"}}
    return make_plan(JobSpec.model_validate(data | changes), ConversationSource(talks), facts)


def line(*texts: str, system_prompt: str | None = None, **extra: Any) -> dict[str, Any]:
    """Make a line of a JSONL file, with extra keys."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return {"messages": messages} | extra


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(value) + "\n" for value in lines))
    return path
