"""Locate the user's message in a rendered conversation, for poolings over it.

Works as for responses (``spans``), without searching: the conversation is rendered once more with a placeholder instead
of the message, the texts around placeholder and message must be the same, and the tokenizer's offsets give the tokens.
If a template has no system role, the system prompt is put in front of the user's first message; it is not part of the
span, because the placeholder replaces only the user's text. A token that has characters of both the user and the
template (or such a system prompt) counts as part of the user's message.

A message that cannot be located this way is refused. It takes two renderings and a tokenisation per prompt, so it is
done only if a pooling needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from ...jobs.conversation import Conversation
from ...jobs.errors import InputError
from ...jobs.messages import ChatMessage
from ...jobs.work.units import RolloutRequest
from .control_tokens import TextEncoder
from .offsets import Span, cut_at, token_span
from .renderer import ChatRenderer

_PLACEHOLDER = "Zq7user"


class UserSpans:
    """Locates user messages in the renderings of one model.

    Args:
        encoder: The model's tokenizer, as ``offsets.offsets_encoder`` returns it.
        renderer: Renders by the model's chat template.
    """

    def __init__(self, encoder: Any, renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._encoder = TextEncoder(encoder, renderer.control_tokens)

    def of_prompt(self, messages: Sequence[ChatMessage], prompt_ids: Sequence[int] | None = None) -> Span:
        """Locate the last user message in a prompt.

        Args:
            messages: The chat up to the response.
            prompt_ids: Token ids that the prompt was rendered to; checked to be those that the span counts. None skips
                the check.

        Returns:
            ``(start, stop)`` in tokens of the prompt; never empty.

        Raises:
            InputError: The message cannot be located, is empty, or does not exist.
        """
        place = _last_of_user(messages)
        if place is None:
            raise _refusal("a prompt has no message of the user")
        source = f"the question {messages[place].content[:60]!r}"
        (span,) = self._find(messages, [place], source, prompt_ids, None, generate=True)
        return span

    def of_turns(self, given: Conversation, turn_indices: Sequence[int]) -> tuple[Span, ...]:
        """Locate, for turns of the assistant, the last user message before each.

        Args:
            given: The conversation.
            turn_indices: Indices of the assistant's messages, the system prompt not counted; of a prompt the only one
                of ``Conversation.turn_indices``.

        Returns:
            For each turn ``(start, stop)`` in tokens of the whole conversation; never empty.

        Raises:
            InputError: A message does not exist or cannot be located; names where the conversation was read.
        """
        chat = given.chat()
        prompts = dict(given.prompts())
        places: list[int] = []
        for turn in turn_indices:
            place = _last_of_user(prompts[turn])
            if place is None:
                raise _refusal(f"message {turn} answers no message of the user ({given.place})")
            places.append(place)
        tools = given.tool_descriptions()
        return tuple(self._find(chat, places, given.place, None, tools, generate=given.is_prompt))

    def of_users(self, given: Conversation) -> dict[int, Span]:
        """Locate every message of the user that has a text.

        Args:
            given: The conversation.

        Returns:
            By its place in ``Conversation.chat``, ``(start, stop)`` in tokens of the whole conversation.

        Raises:
            InputError: A message cannot be located; names where the conversation was read.
        """
        chat = given.chat()
        places = [i for i, message in enumerate(chat) if message.role == "user" and message.content.strip()]
        tools = given.tool_descriptions()
        spans = self._find(chat, places, given.place, None, tools, generate=given.is_prompt)
        return dict(zip(places, spans, strict=True))

    def _find(
        self,
        messages: Sequence[ChatMessage],
        places: Sequence[int],
        source: str,
        token_ids: Sequence[int] | None,
        tools: Sequence[Any] | None,
        *,
        generate: bool,
    ) -> list[Span]:
        def write(chat: Sequence[ChatMessage]) -> str:
            return self._renderer.text(self._renderer.for_template(chat), generate=generate, tools=tools)

        try:
            rendered = self._renderer.rendered(self._renderer.for_template(messages), generate=generate, tools=tools)
            # A message before several responses is located once.
            characters = {place: _characters(messages, place, rendered.text, write) for place in set(places)}
            ids, offsets = self._encoder.encode(rendered)
        except (TemplateError, ValueError) as error:
            raise _refusal(f"{str(error).rstrip('.')} ({source})") from None
        if token_ids is not None and list(token_ids) != ids:
            raise _refusal(f"the rendered text has other tokens than the prompt ({source})")
        spans = [token_span(offsets, characters[place]) for place in places]
        if any(start == stop for start, stop in spans):
            raise _refusal(f"a message of the user has no content ({source})")
        return spans


def _characters(
    messages: Sequence[ChatMessage], place: int, whole: str, write: Callable[[Sequence[ChatMessage]], str]
) -> Span:
    """Locate one message in the rendering, in characters, as the template renders it."""
    mark = _PLACEHOLDER
    while any(mark in message.content for message in messages):
        mark += "q"
    # Replaced before a system message is put in front of the user's, so that the span does not include it.
    marked = [replace(message, content=mark) if i == place else message for i, message in enumerate(messages)]
    before, after = cut_at(write(marked), [mark], "user")
    # Templates may strip a message; what is left of it is still between the same two texts.
    if len(whole) < len(before) + len(after) or not whole.startswith(before) or not whole.endswith(after):
        raise ValueError("a message of the user cannot be told apart from the text that the template adds to it")
    return len(before), len(whole) - len(after)


def _last_of_user(messages: Sequence[ChatMessage]) -> int | None:
    """Return the index of the last message of the user; None where there is none."""
    return next((place for place in reversed(range(len(messages))) if messages[place].role == "user"), None)


def _refusal(reason: str) -> InputError:
    return InputError(
        f"a pooling over the user's message needs its tokens, and the chat template does not show them: {reason}.",
        code="no_user_span",
        field="capture.poolings",
        hint="Leave user_mean out, or take out what has no such message.",
    )


def require_user_spans(spans: UserSpans, requests: Iterable[RolloutRequest]) -> None:
    """Check, before a model is loaded, that the user messages of a job's prompts can be located.

    Each opening (system prompt) is rendered with one question and each question with one opening, but not every
    combination, because a template renders the one independently of the other. A prompt for which that is not true
    fails its unit later; so does a later turn, whose prompt is not known before the reply.

    Args:
        spans: Locates user messages for the job's model.
        requests: Requests that do not depend on a reply.

    Raises:
        InputError: A message cannot be located.
    """
    openings: set[tuple[ChatMessage, ...]] = set()
    questions: set[str] = set()
    for request in requests:
        if request.opening not in openings or request.question not in questions:
            openings.add(request.opening)
            questions.add(request.question)
            spans.of_prompt(request.messages)
