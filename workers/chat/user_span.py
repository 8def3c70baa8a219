"""Which tokens of a rendered conversation are the user's own words, for poolings over them.

As for responses (``spans``), nothing is ever searched for in a text: the template is rendered once more with a
placeholder in place of the message, what stands around the placeholder must be what stands around the message too, and
which tokens these characters became is the tokenizer's own word (its offsets). Where a template has no system role the
system prompt stands in front of the user's first message; it is not the user's, and is outside the span, for the
placeholder takes the place of the user's words alone. A token that holds characters of the template (or of such a
system prompt) and of the user counts to the user.

What cannot be told apart this way is refused by name. Costs two renderings and a tokenisation a prompt, so it is done
only where a pooling asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from ...jobs.conversation import Conversation
from ...jobs.errors import InputError
from ...jobs.messages import ChatMessage
from ...jobs.units import RolloutRequest
from .offsets import Span, cut_at, token_span
from .renderer import ChatRenderer

_PLACEHOLDER = "Zq7user"


class UserSpans:
    """Finds the user's words for one model.

    Args:
        encoder: Its tokenizer, as ``offsets.offsets_encoder`` gives it.
        renderer: Its chat template.
    """

    def __init__(self, encoder: Any, renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._encoder = encoder

    def of_prompt(self, messages: Sequence[ChatMessage], prompt_ids: Sequence[int] | None = None) -> Span:
        """Find the user's last message in a prompt that is to be answered.

        Args:
            messages: The chat up to the response.
            prompt_ids: What the prompt became, which these tokens must be a part of; None where nobody rendered it.

        Returns:
            ``(start, stop)`` in tokens of the prompt; never empty.

        Raises:
            InputError: They cannot be told apart from the template, or there are none.
        """
        place = _last_of_user(messages)
        if place is None:
            raise _refusal("a prompt has no message of the user")
        whose = f"the question {messages[place].content[:60]!r}"
        (span,) = self._find(messages, [place], whose, prompt_ids, generate=True)
        return span

    def of_turns(self, given: Conversation, turn_indices: Sequence[int]) -> tuple[Span, ...]:
        """Find, for turns of the assistant, the last message of the user before each.

        Args:
            given: The conversation.
            turn_indices: Places of the assistant's messages, the system prompt not counted.

        Returns:
            For each turn ``(start, stop)`` in tokens of the whole conversation; never empty.

        Raises:
            InputError: There is no such message, or it cannot be told apart; names where the conversation was read.
        """
        chat = given.chat()
        num_system = len(chat) - len(given.messages)
        places: list[int] = []
        for turn in turn_indices:
            place = _last_of_user(chat[: num_system + turn])
            if place is None:
                raise _refusal(f"message {turn} answers no message of the user ({given.place})")
            places.append(place)
        return tuple(self._find(chat, places, given.place, None, generate=False))

    def _find(
        self,
        messages: Sequence[ChatMessage],
        places: Sequence[int],
        whose: str,
        token_ids: Sequence[int] | None,
        *,
        generate: bool,
    ) -> list[Span]:
        try:
            whole = self._renderer.text(self._renderer.for_template(messages), generate=generate)
            # A message that several responses answer is looked for once.
            characters = {place: self._characters(messages, place, whole, generate=generate) for place in set(places)}
        except (TemplateError, ValueError) as error:
            raise _refusal(f"{str(error).rstrip('.')} ({whose})") from None
        encoding = self._encoder.encode(whole, add_special_tokens=False)
        if token_ids is not None and list(token_ids) != encoding.ids:
            raise _refusal(f"the tokenizer makes other tokens of the template's text ({whose})")
        spans = [token_span(encoding.offsets, characters[place]) for place in places]
        if any(start == stop for start, stop in spans):
            raise _refusal(f"a message of the user has no content ({whose})")
        return spans

    def _characters(self, messages: Sequence[ChatMessage], place: int, whole: str, *, generate: bool) -> Span:
        """Say where in the rendering one message of the user lies, in characters, as the template writes it."""
        mark = _PLACEHOLDER
        while any(mark in message.content for message in messages):
            mark += "q"
        # Before a system message is put in front of the user's, so that it stays outside of the placeholder.
        marked = [replace(message, content=mark) if i == place else message for i, message in enumerate(messages)]
        rendered = self._renderer.text(self._renderer.for_template(marked), generate=generate)
        before, after = cut_at(rendered, [mark], "user")
        # Templates may strip a message; what they leave of it lies between the same two texts.
        if len(whole) < len(before) + len(after) or not whole.startswith(before) or not whole.endswith(after):
            raise ValueError("what it makes of a message of the user cannot be told apart from what it writes itself")
        return len(before), len(whole) - len(after)


def _last_of_user(messages: Sequence[ChatMessage]) -> int | None:
    """Return the place of the last message of the user; None where there is none."""
    return next((place for place in reversed(range(len(messages))) if messages[place].role == "user"), None)


def _refusal(reason: str) -> InputError:
    return InputError(
        f"a pooling over the user's message needs its tokens, and the chat template does not show them: {reason}.",
        code="no_user_span",
        field="capture.poolings",
        hint="Leave user_mean out, or take out what has no such message.",
    )


def require_user_spans(spans: UserSpans, requests: Iterable[RolloutRequest]) -> None:
    """Make sure, before anything is spent, that the user's words of a job's prompts can be found.

    Each opening, a system prompt for instance, is rendered with one question and each question with one opening, not
    all with all: what a template does with the one does not depend on the other. A prompt that surprises fails its unit
    alone, as does a later turn, whose prompt is not known before the reply that it follows.

    Args:
        spans: Finds the user's words for the job's model.
        requests: Those that wait for no reply.

    Raises:
        InputError: Some cannot be found.
    """
    openings: set[tuple[ChatMessage, ...]] = set()
    questions: set[str] = set()
    for request in requests:
        if request.opening not in openings or request.question not in questions:
            openings.add(request.opening)
            questions.add(request.question)
            spans.of_prompt(request.messages)
