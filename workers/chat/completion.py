"""Render texts that are to be completed as they are: as the tokenizer makes tokens of any text, without a template.

The other renderings of a template (those that locate spans, and probes) go by the template of ``builtin_templates``,
which writes the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...jobs.messages import ChatMessage
from .builtin_templates import COMPLETION
from .renderer import ChatRenderer


class CompletionRenderer(ChatRenderer):
    """Renders texts for one model.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, COMPLETION)

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids of a text, with what the tokenizer puts before every text.

        Args:
            messages: The text; several are one text without anything between them.
        """
        handed = self.for_template(messages)
        if self.control_tokens.spelt_in(handed):
            # The tokenizer would read the real token, and what a text spells is ordinary text.
            return super().render(messages)
        text = "".join(message["content"] for message in handed)
        # Not by the template: a tokenizer may begin a text otherwise than what follows a control token.
        return list(self._tokenizer(text)["input_ids"])


def renderer_of(tokenizer: Any, template: str | None) -> ChatRenderer:
    """Make the renderer of a model.

    Args:
        tokenizer: A transformers tokenizer.
        template: Chat template to use instead of the tokenizer's; None: the tokenizer's.

    Raises:
        InputError: There is no chat template, or it cannot render a question.
    """
    return CompletionRenderer(tokenizer) if template == COMPLETION else ChatRenderer(tokenizer, template)
