"""Render whole conversations to token ids, and locate the span of every response in them.

The ids are those of the rendering of the whole conversation. To locate the responses, the conversation is rendered a
second time with a placeholder for every response; the texts around the placeholders, joined with the real responses,
must be the real rendering again. That gives the characters of each response, and the tokenizer's offsets give their
tokens. A response is never searched for in the rendering, where the same text may occur twice, and a template that
rewrites responses in a way that this cannot follow is refused. A token that has characters of both the template and the
response counts as part of the response.

A prompt without an answer (``Conversation.is_prompt``) is rendered with the header of the response that would come
next, as before generation, and its response is the empty span after it.

What a template leaves out is not passed over: a message, a tool call or the tools that it does not write are refused,
reasoning that it has no place for and responses that it shortens are counted (``survey``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ...jobs.conversation import Conversation
from ...jobs.errors import InputError
from ...jobs.machine_faults import refuse_machine_fault
from ...jobs.messages import ChatMessage
from ..engine import TokenisedText
from ..own_code import refuse_own_code
from .completion import renderer_of
from .control_tokens import Rendered, TextEncoder
from .offsets import Span, common_length, cut_at, offsets_encoder, token_span
from .reasoning import open_tag
from .renderer import ChatRenderer, TemplateMessage
from .served_ids import count_content
from .unanswered import require_closed, require_users_written
from .user_span import UserSpans

_PLACEHOLDER = "Zq7response"
_INSTRUCTING = ("system", "developer")

_Messages = Sequence[TemplateMessage]
_Write = Callable[[_Messages], str]


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """A conversation as the template renders it.

    Attributes:
        text: Its token ids and the spans of its responses.
        contents: The text of each response as it is in the rendering, where the template may strip or shorten it.
    """

    text: TokenisedText
    contents: tuple[str, ...]


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
        self._text_encoder = TextEncoder(self._encoder, renderer.control_tokens)

    @property
    def text_encoder(self) -> TextEncoder:
        """Tokenises the renderings, with the range of characters of each token."""
        return self._text_encoder

    def user_spans(self) -> UserSpans:
        """Make the object that locates user messages in the same renderings."""
        return UserSpans(self._encoder, self.renderer)

    def decode(self, token_ids: Sequence[int]) -> str | None:
        """Decode tokens, control tokens included; None where one is not in the vocabulary."""
        if any(self._encoder.id_to_token(token_id) is None for token_id in set(token_ids)):
            return None
        return str(self._encoder.decode(list(token_ids), skip_special_tokens=False))

    def count_content(self, token_ids: Sequence[int], text: str, *, has_ended: bool) -> int | None:
        """Count the content tokens of a server's response; see ``served_ids.count_content``."""
        return count_content(self._encoder, token_ids, text, has_ended=has_ended)

    def render(self, given: Conversation) -> TokenisedText:
        """Render a conversation to token ids; see ``read``."""
        return self.read(given).text

    def read(self, given: Conversation) -> RenderedConversation:
        """Render a conversation and locate every message of the assistant, in order; of a prompt, the end.

        Raises:
            InputError: The chat template rejects the conversation, leaves a part of it out or rewrites a message; names
                where it was read.
        """
        tools = given.tool_descriptions()
        write = partial(self.renderer.text, generate=given.is_prompt, tools=tools)
        try:
            messages = self.renderer.for_template(given.chat())
            rendered = self._rendered(messages, tools, generate=given.is_prompt)
            _require_all_written(messages, tools, rendered.text, self.renderer, generate=given.is_prompt)
            characters = self._responses(messages, rendered.text, tools, write)
            if given.is_prompt:
                # Earlier messages of the assistant had to be there, and are part of the prompt.
                require_users_written(self.renderer, messages, tools)
                require_closed(self.renderer, messages, rendered.text, tools, given.place)
                characters = [(len(rendered.text), len(rendered.text))]
            else:
                _require_outside_of_reasoning(messages, rendered.text, characters)
            ids, offsets = self._text_encoder.encode(rendered)
        except (TemplateError, ValueError) as error:
            raise InputError(
                f"cannot be rendered by the model's chat template: {str(error).rstrip('.')} ({given.place}).",
                code="not_rendered",
                field="messages",
                hint="Change the conversation, or leave it out.",
            ) from None
        # An empty token may follow the last character, so the end of a prompt is counted and not looked up.
        end = (len(ids), len(ids))
        spans = (end,) if given.is_prompt else tuple(token_span(offsets, span) for span in characters)
        if spans[0][0] == 0:
            raise InputError(
                f"begins with the assistant, and this template puts nothing before it ({given.place}).",
                code="no_prompt",
                field="messages",
                hint="Put the user's message before it.",
            )
        contents = tuple(rendered.text[start:stop] for start, stop in characters)
        return RenderedConversation(TokenisedText(given.place, tuple(ids), spans), contents)

    def answer(self, messages: Sequence[ChatMessage], response: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of a server's response to it.

        The response is tokenised here, after the prompt. The server may have sampled other tokens with the same text.

        Args:
            messages: The chat up to the response.
            response: Text of the response.
        """
        prompt_ids = self.renderer.render(messages)
        prompt = self.renderer.rendered(self.renderer.for_template(messages), generate=True)
        spelt = self.renderer.control_tokens.places(response)
        start = len(prompt.text)
        whole = Rendered(
            prompt.text + response, (*prompt.spelt, *((start + begin, start + end) for begin, end in spelt))
        )
        ids, _ = self._text_encoder.encode(whole)
        if ids[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, ids[len(prompt_ids) :]
        # The tokenizer merged the end of the prompt with the start of the response, which cannot happen when a model
        # generates the response: tokenise it alone.
        return prompt_ids, self._text_encoder.encode(Rendered(response, tuple(spelt)))[0]

    def _rendered(self, messages: _Messages, tools: Sequence[Any] | None, *, generate: bool) -> Rendered:
        """Render a conversation; if the template raises, say at which message."""
        try:
            return self.renderer.rendered(messages, generate=generate, tools=tools)
        except TemplateError as error:
            place = self._place_of(error, messages, tools)
            role = messages[place]["role"]
            raise ValueError(f"message {place} ({role}): {error}") from None

    def _place_of(self, error: TemplateError, messages: _Messages, tools: Sequence[Any] | None) -> int:
        """Return the first message with which the template raises the same error."""
        for place in range(len(messages) - 1):
            try:
                self.renderer.text(messages[: place + 1], generate=False, tools=tools)
            except TemplateError as other:
                if str(other) == str(error):
                    return place
        return len(messages) - 1

    def _responses(self, messages: _Messages, whole: str, tools: Sequence[Any] | None, write: _Write) -> list[Span]:
        """Locate the assistant's messages in the rendering, in characters."""
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        stem = _PLACEHOLDER
        while any(stem in message["content"] for message in messages):
            stem += "q"
        # A template may write nothing of a content beside tool calls, or a line break only where there is one.
        calls = [place for place in places if not messages[place]["content"] and "tool_calls" in messages[place]]
        marks = {place: f"{stem}{place}." for place in places if place not in calls}
        marked = [{**message, "content": marks.get(i, message["content"])} for i, message in enumerate(messages)]
        around = cut_at(write(marked), list(marks.values()), "assistant")
        contents = [messages[place]["content"] for place in marks]
        spans = _put_together(around, contents, whole)
        if spans is None:
            contents = [_as_rendered(messages, marked, marks, place, write) for place in marks]
            spans = _put_together(around, contents, whole)
        if spans is None:
            raise ValueError("it writes one message depending on others, so the responses cannot be told apart")
        found = dict(zip(marks, spans, strict=True))
        for place in calls:
            prompt = self.renderer.text(messages[:place], generate=True, tools=tools)
            end = common_length(prompt, whole)
            found[place] = (end, end)
        return [found[place] for place in places]


def _as_rendered(messages: _Messages, marked: _Messages, marks: dict[int, str], place: int, write: _Write) -> str:
    """Return one response as the template renders it, which may, for example, strip its spaces."""
    before, after = cut_at(write(marked), [marks[place]], "assistant")
    text = write([messages[i] if i == place else message for i, message in enumerate(marked)])
    if len(text) < len(before) + len(after) or not text.startswith(before) or not text.endswith(after):
        raise ValueError(
            f"what it makes of the assistant's message {place} cannot be told apart; reasoning in it is a usual "
            "cause, take it out of the content"
        )
    return text[len(before) : len(text) - len(after)]


def _require_all_written(
    messages: _Messages, tools: Sequence[Any] | None, whole: str, renderer: ChatRenderer, *, generate: bool
) -> None:
    """Check that the template writes every message of a rarer kind, every tool call and the tools."""
    if tools and renderer.text(messages, generate=generate) == whole:
        raise ValueError("it leaves the tools out")
    for place, message in enumerate(messages):
        others: dict[str, TemplateMessage] = {}
        if "tool_calls" in message:
            others["the tool calls of "] = {key: value for key, value in message.items() if key != "tool_calls"}
        if message["content"] and (message["role"] == "tool" or (message["role"] in _INSTRUCTING and place)):
            others[""] = message | {"content": message["content"] + _PLACEHOLDER}
        for what, other in others.items():
            changed = [*messages[:place], other, *messages[place + 1 :]]
            if _text_or_none(renderer, changed, tools, generate=generate) == whole:
                raise ValueError(f"it leaves {what}message {place} ({message['role']}) out")


def _text_or_none(
    renderer: ChatRenderer, messages: _Messages, tools: Sequence[Any] | None, *, generate: bool
) -> str | None:
    try:
        return renderer.text(messages, generate=generate, tools=tools)
    except TemplateError:
        return None


def _require_outside_of_reasoning(messages: _Messages, whole: str, responses: Sequence[Span]) -> None:
    """Check that no response begins inside of reasoning that the template opened."""
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    end = 0
    for place, (start, stop) in zip(places, responses, strict=True):
        # Of the text before the response only what the template writes: a message may speak of such tags.
        said = messages[place - 1]["content"].strip() if place else ""
        header = whole[end:start].rpartition(said)[2] if said and said in whole[end:start] else ""
        tag = open_tag(header if place else whole[:start])
        if tag is not None and stop > start:
            raise ValueError(f"it opens {tag} before message {place} and does not close it, so that is reasoning")
        end = stop


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
    start, length = text.responses[-1]
    if length > max_context:
        extent = " up to its last response" if start < length else ""
        raise InputError(
            f"has {length:,} tokens{extent}; the model's context is {max_context:,} ({text.name}).",
            code="too_long",
            field="messages",
            hint="Shorten the conversation, or leave it out.",
        )


def load_renderer(directory: Path, template: str | None = None) -> ConversationRenderer:
    """Load a model's tokenizer and chat template, without weights.

    Args:
        directory: Directory with the tokenizer's files.
        template: Chat template to use instead of the model's; None: the model's.

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
    return ConversationRenderer(tokenizer, renderer_of(tokenizer, template))
