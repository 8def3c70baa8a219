"""Check where a prompt without an answer ends: the response that would come next must not begin as reasoning.

``checks`` does the same with probes, for prompts that are not known yet. Here the prompt exists, and what its template
writes after it may depend on its messages and tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from ...jobs.errors import InputError
from .offsets import common_length
from .reasoning import open_tag, opened_by_prompt
from .renderer import PROBE_ANSWER, ChatRenderer, TemplateMessage


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
