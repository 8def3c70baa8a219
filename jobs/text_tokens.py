"""Estimate numbers of tokens from numbers of words, by rules of thumb, when no tokenizer is loaded."""

from __future__ import annotations

TOKENS_PER_WORD = 1.35
"""Typical of English prose with a byte-pair vocabulary."""

TEMPLATE_TOKENS = 20
"""Tokens that a chat template adds to a system prompt and a question."""


def word_tokens(words: int) -> int:
    """Estimate the tokens of a text from its number of words."""
    return int(words * TOKENS_PER_WORD)


def prompt_tokens(words: int) -> int:
    """Estimate the tokens of a prompt, chat template included, from its number of words."""
    return word_tokens(words) + TEMPLATE_TOKENS
