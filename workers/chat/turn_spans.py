"""Locate every turn of a conversation in its rendering: what the assistant said, what it reasoned, what users said.

The ids are those of ``ConversationRenderer``, and so are the spans of contents. Reasoning and the user's messages are
located in the same way, by a placeholder instead of the text; tool calls by the difference that leaving them out makes.
Nothing is searched for. What a template does not write has an empty span, and a sentence in ``left_out_notes``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateError

from ...jobs.conversation import Conversation
from ...jobs.messages import INSTRUCTING_ROLES, ChatMessage
from ...jobs.poolings import TokenRange
from ...jobs.wording import count_of
from .control_tokens import TextEncoder
from .offsets import common_length, token_span
from .renderer import ChatRenderer, TemplateMessage
from .spans import ConversationRenderer, RenderedConversation

TurnPart = Literal["content", "reasoning", "all"]
"""What of an assistant's message is read: its content, its reasoning, or all that the model wrote: from the first to
the last of reasoning, content and tool calls, with what the template writes between them."""

TurnRole = Literal["assistant", "user"]

_MARK = "Zq7mark"


@dataclass(frozen=True, slots=True)
class LocatedTurn:
    """One turn and its tokens.

    Attributes:
        turn_index: Its place among the turns: user 0, assistant 1 and so on; system messages are not counted.
        role: Who wrote it.
        text: Its text as the template writes it; that of the message where the template writes nothing of it.
        span: Range of its tokens in the conversation; empty where the template writes nothing of it.
    """

    turn_index: int
    role: TurnRole
    text: str
    span: TokenRange


@dataclass(frozen=True, slots=True)
class LocatedTurns:
    """The turns of a conversation.

    Attributes:
        rendered: The whole conversation.
        turns: Those of the roles that were asked for, in order; their spans ascend.
        left_out: What could not be located, with the number of messages: ``reasoning`` that the template does not
            write, ``tool calls`` that cannot be told apart from what it writes around them.
    """

    rendered: RenderedConversation
    turns: tuple[LocatedTurn, ...]
    left_out: Counter[str]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids of the whole conversation."""
        return self.rendered.text.token_ids

    def token_texts(self, turn: LocatedTurn, text_of: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
        """Return the text of each token of a turn; a character of several tokens is the text of the last of them.

        Args:
            turn: One of the turns.
            text_of: Decodes token ids.
        """
        start, stop = turn.span
        texts: list[str] = []
        begin = start
        for end in range(start + 1, stop + 1):
            text = text_of(self.token_ids[begin:end])
            # A character whose bytes are not complete yet is decoded as the replacement character.
            if text.endswith("\ufffd") and end < stop:
                texts.append("")
                continue
            texts.append(text)
            begin = end
        return tuple(texts)


_LEFT_OUT = {
    "reasoning": "the chat template writes no reasoning there, as it may where the conversation goes on",
    "tool calls": "tool calls cannot be told apart from the text around them, and are not part of the span",
}


def left_out_notes(left_out: Counter[str]) -> list[str]:
    """Say what could not be located, for people.

    Args:
        left_out: As ``LocatedTurns.left_out``, of one or more conversations.

    Example:
        >>> left_out_notes(Counter({"reasoning": 2}))
        ['2 messages: the chat template writes no reasoning there, as it may where the conversation goes on.']
    """
    return [
        f"{count_of(left_out[name], 'message')}: {meaning}." for name, meaning in _LEFT_OUT.items() if left_out[name]
    ]


class TurnLocator:
    """Locates the turns of conversations in the renderings of one model.

    Args:
        conversations: Renders whole conversations.
    """

    def __init__(self, conversations: ConversationRenderer) -> None:
        self._conversations = conversations
        self._renderer = conversations.renderer
        self._users = conversations.user_spans()

    def locate(
        self, given: Conversation, part: TurnPart = "content", roles: Collection[TurnRole] = ("assistant",)
    ) -> LocatedTurns:
        """Render a conversation and locate its turns.

        Args:
            given: The conversation; it has a message of the assistant.
            part: What of the assistant's messages is located.
            roles: Whose turns.

        Raises:
            InputError: The chat template rejects the conversation, leaves a part of it out or rewrites a message; names
                where it was read.
        """
        rendered = self._conversations.read(given)
        spans = list(zip(rendered.text.responses, rendered.contents, strict=True))
        left_out: Counter[str] = Counter()
        if part != "content":
            spans = _Parts(self._renderer, self._conversations.text_encoder, given, left_out).of(part, spans)
        responses = iter(spans)
        users = self._users.of_users(given) if "user" in roles else {}
        turns: list[LocatedTurn] = []
        turn_index = 0
        for place, message in enumerate(given.chat()):
            if message.role in INSTRUCTING_ROLES:
                continue
            if message.role == "assistant":
                span, text = next(responses)
                if "assistant" in roles:
                    turns.append(LocatedTurn(turn_index, "assistant", text, span))
            elif message.role == "user" and "user" in roles:
                turns.append(LocatedTurn(turn_index, "user", message.content, users.get(place, (0, 0))))
            turn_index += 1
        return LocatedTurns(rendered, tuple(turns), left_out)


class _Parts:
    """Reasoning and tool calls of the assistant's messages of one conversation.

    Args:
        renderer: Renders by the chat template.
        encoder: Tokenises renderings.
        given: The conversation, which can be rendered.
        left_out: Counts what is not located.
    """

    def __init__(
        self, renderer: ChatRenderer, encoder: TextEncoder, given: Conversation, left_out: Counter[str]
    ) -> None:
        self._renderer = renderer
        self._tools = given.tool_descriptions()
        self._left_out = left_out
        self._messages = renderer.for_template(given.chat())
        self._given = [message for message in given.chat() if message.role == "assistant"]
        rendered = renderer.rendered(self._messages, generate=False, tools=self._tools)
        self._whole = rendered.text
        _, self._offsets = encoder.encode(rendered)

    def of(self, part: TurnPart, contents: Sequence[tuple[TokenRange, str]]) -> list[tuple[TokenRange, str]]:
        """Return the tokens and the text of a part of every message of the assistant.

        Args:
            part: ``reasoning`` or ``all``.
            contents: Tokens and text of the content of each.
        """
        places = [place for place, message in enumerate(self._messages) if message["role"] == "assistant"]
        found: list[tuple[TokenRange, str]] = []
        for place, message, (content, _) in zip(places, self._given, contents, strict=True):
            spans = [self._reasoning(place, message)]
            if part == "all":
                spans += [content, self._calls(place)]
            there = [span for span in spans if span[0] < span[1]]
            if not there:
                found.append(((0, 0), ""))
                continue
            start, stop = min(span[0] for span in there), max(span[1] for span in there)
            found.append(((start, stop), self._whole[self._offsets[start][0] : self._offsets[stop - 1][1]]))
        return found

    def _reasoning(self, place: int, message: ChatMessage) -> TokenRange:
        name = self._renderer.reasoning_field
        if not message.reasoning:
            return 0, 0
        mark = _unused(_MARK, self._whole)
        written = "" if name is None else self._write(place, self._messages[place] | {name: mark})
        before, found, after = written.partition(mark)
        # A template may strip reasoning; what is left of it is still between the same two texts.
        is_between = self._whole.startswith(before) and self._whole.endswith(after)
        if not found or mark in after or not is_between or len(self._whole) < len(before) + len(after):
            self._left_out["reasoning"] += 1
            return 0, 0
        return token_span(self._offsets, (len(before), len(self._whole) - len(after)))

    def _calls(self, place: int) -> TokenRange:
        message = self._messages[place]
        if "tool_calls" not in message:
            return 0, 0
        try:
            without = self._write(place, {key: value for key, value in message.items() if key != "tool_calls"})
        except TemplateError:
            # The template refuses a result without the call that it answers.
            self._left_out["tool calls"] += 1
            return 0, 0
        before, after = common_length(without, self._whole), common_length(without[::-1], self._whole[::-1])
        start, stop = before, len(self._whole) - after
        if before + after >= len(without):
            # Where the calls end as the text before them does, with a bracket or a line break, they could also begin
            # earlier; they begin after the content.
            start = min(max(len(without) - after, self._after_content(place)), before)
            stop = start + len(self._whole) - len(without)
        return token_span(self._offsets, (start, stop))

    def _after_content(self, place: int) -> int:
        """Return where the content of a message ends, or its header where nothing of the content is written."""
        message = self._messages[place]
        mark = _unused(_MARK, self._whole)
        before, found, _ = self._write(place, message | {"content": mark}).partition(mark)
        if found and self._whole.startswith(before + message["content"]):
            return len(before) + len(message["content"])
        prompt = self._renderer.text(self._messages[:place], generate=True, tools=self._tools)
        return common_length(prompt, self._whole)

    def _write(self, place: int, message: TemplateMessage) -> str:
        messages = [*self._messages[:place], message, *self._messages[place + 1 :]]
        return self._renderer.text(messages, generate=False, tools=self._tools)


def _unused(mark: str, text: str) -> str:
    """Make a mark longer until a text does not have it."""
    while mark in text:
        mark += "q"
    return mark
