"""Count the rows of a run whose texts the chat template, or this project's rules for it, do not take as they are.

The counts go into the plan that is printed and into the run's record. A text with any of these is read nevertheless:
what is refused is refused elsewhere. Knows no units and no store.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from ...jobs.conversation import Conversation
from ...jobs.messages import ChatMessage
from ...jobs.wording import count_of
from ...jobs.work.units import RolloutRequest
from .reasoning import reasons_in_text
from .renderer import ChatRenderer
from .spans import RenderedConversation

_MEANINGS = {
    "control_tokens": "a text spells a control token of the model, which is read as ordinary text",
    "reasoning_left_out": "reasoning in a field of its own has no place in the chat template and is left out",
    "responses_shortened": "the chat template writes another text than the response, which is the one that is stored",
    "reasoning_in_responses": "reasoning is part of the response's content and is pooled with it",
}
"""What is counted, by its name in the run's record and in a plan."""


class TextSurvey:
    """Counts rows as their texts are added.

    Args:
        renderer: Renders by the chat template.
    """

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._counted: Counter[str] = Counter()
        # Requests of a unit share their system prompt, and those of a question its text.
        self._spells = lru_cache(maxsize=100_000)(self._message_spells)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by what is special about them; without those of which there are none."""
        return {name: self._counted[name] for name in _MEANINGS if self._counted[name]}

    def lines(self) -> list[str]:
        """Return a sentence about each of the counts, for people."""
        return [f"{count_of(number, 'row')}: {_MEANINGS[name]}." for name, number in self.counts.items()]

    def add_request(self, request: RolloutRequest) -> None:
        """Count a row whose response is to be generated.

        Args:
            request: Its request.
        """
        self._counted["control_tokens"] += any(map(self._spells, request.messages))

    def add_conversation(self, given: Conversation, rendered: RenderedConversation) -> None:
        """Count the rows of a conversation: those with such a text in the response or before it.

        Args:
            given: The conversation.
            rendered: Its rendering.
        """
        spells = bool(self._renderer.control_tokens.spelt_in(given.tool_descriptions()))
        left_out = False
        contents = iter(rendered.contents)
        for message in given.chat():
            spells = spells or self._spells(message)
            left_out = left_out or (message.reasoning is not None and self._renderer.reasoning_field is None)
            if message.role == "assistant" and not given.is_prompt:
                content = next(contents)
                self._add_row(spells=spells, left_out=left_out)
                self._counted["responses_shortened"] += is_other_text(message.content, content)
                self._counted["reasoning_in_responses"] += reasons_in_text(content)
        if given.is_prompt:
            self._add_row(spells=spells, left_out=left_out)

    def _add_row(self, *, spells: bool, left_out: bool) -> None:
        self._counted["control_tokens"] += spells
        self._counted["reasoning_left_out"] += left_out

    def _message_spells(self, message: ChatMessage) -> bool:
        texts = [message.content, message.reasoning, message.more()]
        return bool(self._renderer.control_tokens.spelt_in(texts))


def is_other_text(given: str, rendered: str) -> bool:
    """Whether a template writes another text for a response than was given, spaces around it aside.

    Args:
        given: The response as it was given.
        rendered: The response as the template renders it.
    """
    return given.strip() != rendered.strip()
