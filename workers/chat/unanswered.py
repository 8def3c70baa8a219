"""Check the rendering of a prompt without an answer: the user's messages are in it, and it ends outside of reasoning.

``checks`` finds the end of prompts with probes. Here the prompt exists, and what its template writes after it may
depend on its messages and tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from ...jobs.errors import InputError
from .offsets import common_length
from .reasoning import open_tag, opened_by_prompt
from .renderer import PROBE_ANSWER, ChatRenderer, TemplateMessage

_PLACEHOLDER = "Zq7user"


def require_users_written(
    renderer: ChatRenderer, messages: Sequence[TemplateMessage], tools: Sequence[Any] | None
) -> None:
    """Check that a template writes every message of the user, also where it has many messages.

    Args:
        renderer: Renders by the template.
        messages: The prompt's messages, as ``ChatRenderer.for_template`` returns them.
        tools: Descriptions of the tools that the model may call; None for none.

    Raises:
        TemplateError: The template rejects the messages with a word more in each.
        ValueError: It leaves a message out.
    """
    stem = _PLACEHOLDER
    while any(stem in message["content"] for message in messages):
        stem += "q"
    marks = {place: f" {stem}{place}." for place, message in enumerate(messages) if message["role"] == "user"}
    marked = [message | {"content": message["content"] + marks.get(i, "")} for i, message in enumerate(messages)]
    text = renderer.text(marked, generate=True, tools=tools)
    left_out = next((place for place, mark in marks.items() if mark.strip() not in text), None)
    if left_out is not None:
        raise ValueError(f"it leaves message {left_out} (user) out")


def require_closed(
    renderer: ChatRenderer, messages: Sequence[TemplateMessage], prompt: str, tools: Sequence[Any] | None, place: str
) -> None:
    """Refuse a prompt that ends inside of reasoning, or of another tag that is not there before an answer that exists.

    Args:
        renderer: Renders by the template.
        messages: The prompt's messages, as ``ChatRenderer.for_template`` returns them.
        prompt: Their rendering with the header of a response.
        tools: Descriptions of the tools that the model may call; None for none.
        place: Where the prompt was read.

    Raises:
        InputError: It ends inside of a tag, so that its last token is not the last before an answer.
        TemplateError: The template rejects the messages without the header of a response.
    """
    tag = _left_open(renderer, messages, prompt, tools)
    if tag is not None:
        raise InputError(
            f"the chat template ends a prompt inside of {tag} although enable_thinking is false, so the last token of "
            f"the prompt would be one of reasoning and not the last before an answer ({place}).",
            code="opens_reasoning",
            field=renderer.source.field,
            hint="Give a copy of its template that closes the tag in model.chat_template.",
        )


def _left_open(
    renderer: ChatRenderer, messages: Sequence[TemplateMessage], prompt: str, tools: Sequence[Any] | None
) -> str | None:
    bare = renderer.text(messages, generate=False, tools=tools)
    header = prompt[common_length(bare, prompt) :]
    answered = [*messages, {"role": PROBE_ANSWER.role, "content": PROBE_ANSWER.content}]
    try:
        text = renderer.text(answered, generate=False, tools=tools)
    except TemplateError:
        return open_tag(header)
    return opened_by_prompt(header, text[common_length(bare, text) :].partition(PROBE_ANSWER.content)[0])
