"""From words to tokens where no tokenizer is at hand. Rules of thumb, stated."""

from __future__ import annotations

TOKENS_PER_WORD = 1.35
"""English prose under the usual byte-pair vocabularies."""

TEMPLATE_TOKENS = 20
"""What a chat template adds around a system prompt and a question."""


def word_tokens(words: int) -> int:
    """Say about how many tokens a number of words comes to."""
    return int(words * TOKENS_PER_WORD)


def prompt_tokens(words: int) -> int:
    """Say about how many tokens a number of words comes to within a chat template."""
    return word_tokens(words) + TEMPLATE_TOKENS
