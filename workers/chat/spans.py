"""Render whole conversations to token ids, and locate the span of every response in them.

The ids are those of the rendering of the whole conversation. To locate the responses, the conversation is rendered a
second time with a placeholder for every response; the texts around the placeholders, joined with the real responses,
must be the real rendering again. That gives the characters of each response, and the tokenizer's offsets give their
tokens. A response is never searched for in the rendering, where the same text may occur twice, and a template that
rewrites responses in a way that this cannot follow is refused. A token that has characters of both the template and the
response counts as part of the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ...jobs.conversation import Conversation
from ...jobs.errors import InputError
from ...jobs.machine_faults import refuse_machine_fault
from ...jobs.messages import ChatMessage
from ..engine import TokenisedText
from ..own_code import refuse_own_code
from .offsets import Span, cut_at, offsets_encoder, token_span
from .renderer import ChatRenderer
from .user_span import UserSpans

_PLACEHOLDER = "Zq7response"

_Messages = Sequence[dict[str, str]]


class ConversationRenderer:
    """Renders whole conversations for one model.

    Args:
        tokenizer: A transformers tokenizer.
        renderer: Renders by its chat template.

    Raises:
        InputError: It is a slow tokenizer, which has no offsets.
    """

    def __init__(self, tokenizer: Any, renderer: ChatRenderer) -> None:
        self.renderer = renderer
        self._encoder = offsets_encoder(tokenizer)

    def user_spans(self) -> UserSpans:
        """Make the object that locates user messages in the same renderings."""
        return UserSpans(self._encoder, self.renderer)

    def render(self, given: Conversation) -> TokenisedText:
        """Render a conversation and locate every message of the assistant, in order.

        Raises:
            InputError: The chat template rejects the conversation or rewrites a message; names where it was read.
        """
        try:
            messages = self.renderer.for_template(given.chat())
            whole = self.renderer.text(messages, generate=False)
            characters = self._responses(messages, whole)
        except (TemplateError, ValueError) as error:
            raise InputError(
                f"cannot be rendered by the model's chat template: {str(error).rstrip('.')} ({given.place}).",
                code="not_rendered",
                field="messages",
                hint="Change the conversation, or leave it out.",
            ) from None
        encoding = self._encoder.encode(whole, add_special_tokens=False)
        spans = tuple(token_span(encoding.offsets, span) for span in characters)
        if spans[0][0] == 0:
            raise InputError(
                f"begins with the assistant, and this template puts nothing before it ({given.place}).",
                code="no_prompt",
                field="messages",
                hint="Put the user's message before it.",
            )
        return TokenisedText(given.place, tuple(encoding.ids), spans)

    def answer(self, messages: Sequence[ChatMessage], response: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of a server's response to it.

        The response is tokenised here, after the prompt. The server may have sampled other tokens with the same text.

        Args:
            messages: The chat up to the response.
            response: Text of the response.
        """
        prompt_ids = self.renderer.render(messages)
        prompt = self.renderer.text(self.renderer.for_template(messages), generate=True)
        ids = self._encoder.encode(prompt + response, add_special_tokens=False).ids
        if ids[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, ids[len(prompt_ids) :]
        # The tokenizer merged the end of the prompt with the start of the response, which cannot happen when a model
        # generates the response: tokenise it alone.
        return prompt_ids, self._encoder.encode(response, add_special_tokens=False).ids

    def _responses(self, messages: _Messages, whole: str) -> list[Span]:
        """Locate the assistant's messages in the rendering, in characters."""
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        stem = _PLACEHOLDER
        while any(stem in message["content"] for message in messages):
            stem += "q"
        marks = {place: f"{stem}{place}." for place in places}
        marked = [{**message, "content": marks.get(i, message["content"])} for i, message in enumerate(messages)]
        around = cut_at(self.renderer.text(marked, generate=False), list(marks.values()), "assistant")
        contents = [messages[place]["content"] for place in places]
        spans = _put_together(around, contents, whole)
        if spans is None:
            contents = [self._as_rendered(messages, marked, marks, place) for place in places]
            spans = _put_together(around, contents, whole)
        if spans is None:
            raise ValueError("it writes one message depending on others, so the responses cannot be told apart")
        return spans

    def _as_rendered(self, messages: _Messages, marked: _Messages, marks: dict[int, str], place: int) -> str:
        """Return one response as the template renders it, which may, for example, strip its spaces."""
        before, after = cut_at(self.renderer.text(marked, generate=False), [marks[place]], "assistant")
        alone = [messages[i] if i == place else message for i, message in enumerate(marked)]
        text = self.renderer.text(alone, generate=False)
        if len(text) < len(before) + len(after) or not text.startswith(before) or not text.endswith(after):
            raise ValueError(
                f"what it makes of the assistant's message {place} cannot be told apart; reasoning in it is a usual "
                "cause, take it out of the content"
            )
        return text[len(before) : len(text) - len(after)]


def _put_together(around: Sequence[str], contents: Sequence[str], whole: str) -> list[Span] | None:
    """Insert contents between the texts around placeholders; return their spans if that gives ``whole``, else None."""
    spans: list[Span] = []
    text = around[0]
    for content, after in zip(contents, around[1:], strict=True):
        spans.append((len(text), len(text) + len(content)))
        text += content + after
    return spans if text == whole else None


def require_within_context(text: TokenisedText, max_context: int) -> None:
    """Check that a conversation is within the model's context.

    Args:
        text: The rendered conversation.
        max_context: Longest sequence that the model takes, in tokens.

    Raises:
        InputError: It is longer; names both lengths and where it was read.
    """
    length = text.responses[-1][1]
    if length > max_context:
        raise InputError(
            f"has {length:,} tokens up to its last response; the model's context is {max_context:,} ({text.name}).",
            code="too_long",
            field="messages",
            hint="Shorten the conversation, or leave it out.",
        )


def load_renderer(directory: Path) -> ConversationRenderer:
    """Load a model's tokenizer and chat template, without weights.

    Args:
        directory: Directory with the tokenizer's files.

    Raises:
        InputError: There is no tokenizer, or it has no chat template or no offsets.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        refuse_machine_fault(error)
        refuse_own_code(directory, error)
        raise InputError(
            f"the tokenizer in {directory} cannot be loaded: {error}.",
            code="no_tokenizer",
            field="model.source",
            hint="Are the tokenizer's files there?",
        ) from error
    return ConversationRenderer(tokenizer, ChatRenderer(tokenizer))
