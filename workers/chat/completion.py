"""Render texts that are to be completed as they are: as the tokenizer makes tokens of any text, without a template.

The other renderings of a template (those that locate spans, and probes) go by the template of ``builtin_templates``,
which writes the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ...jobs.messages import ChatMessage
from .builtin_templates import COMPLETION
from .renderer import ChatRenderer

_PROBE = "a"


class CompletionRenderer(ChatRenderer):
    """Renders texts for one model.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, COMPLETION)

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids of a text, with what the tokenizer puts before every text, and not what it puts after.

        Args:
            messages: The text; several are one text without anything between them.
        """
        handed = self.for_template(messages)
        if self.control_tokens.spelt_in(handed):
            # The tokenizer would read the real token, and what a text spells is ordinary text.
            return super().render(messages)
        text = "".join(message["content"] for message in handed)
        # Not by the template: a tokenizer may begin a text otherwise than what follows a control token.
        ids = list(self._tokenizer(text)["input_ids"])
        return ids[: len(ids) - self._num_after]

    @cached_property
    def _num_after(self) -> int:
        """Number of tokens that the tokenizer puts after every text, as ``</s>``: what follows them is another text."""
        whole, alone = (self._tokenizer(_PROBE, add_special_tokens=adds)["input_ids"] for adds in (True, False))
        return next((n for n in range(len(whole)) if whole[len(whole) - n - len(alone) : len(whole) - n] == alone), 0)


def renderer_of(tokenizer: Any, template: str | None) -> ChatRenderer:
    """Make the renderer of a model.

    Args:
        tokenizer: A transformers tokenizer.
        template: Chat template to use instead of the tokenizer's; None: the tokenizer's.

    Raises:
        InputError: There is no chat template, or it cannot render a question.
    """
    return CompletionRenderer(tokenizer) if template == COMPLETION else ChatRenderer(tokenizer, template)
