"""Locate text in a rendered template, in characters (by placeholders) and in tokens (by the tokenizer's offsets).

Shared by the spans of responses (``spans``) and of user messages (``user_span``). Knows nothing of messages.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from ...jobs.errors import InputError

Span = tuple[int, int]
"""``(start, stop)`` in characters or tokens, end exclusive."""


def offsets_encoder(tokenizer: Any) -> Any:
    """Copy the fast tokenizer behind a transformers tokenizer; its encodings have character offsets.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        A ``tokenizers.Tokenizer`` without truncation, padding and added special tokens, which the template writes.

    Raises:
        InputError: It is a slow tokenizer, which has no offsets.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"its tokenizer ({type(tokenizer).__name__}) has no character offsets, because it is a slow tokenizer.",
            code="slow_tokenizer",
            field="model.source",
            hint="Save the tokenizer in the tokenizer.json format.",
        )
    encoder = copy.deepcopy(backend)
    encoder.no_truncation()
    encoder.no_padding()
    # A post-processor adds special tokens, which the template already writes, and may trim spaces from the offsets.
    encoder.post_processor = None
    return encoder


def cut_at(text: str, marks: Sequence[str], role: str) -> list[str]:
    """Split a rendering at its placeholders.

    Args:
        text: A rendering with placeholders instead of the contents of some messages.
        marks: The placeholders, in the order in which they must occur, each once.
        role: Role of these messages, ``assistant`` or ``user``; for the error.

    Returns:
        The texts before, between and after the placeholders: one more than there are placeholders.

    Raises:
        ValueError: A placeholder is missing, or occurs twice.
    """
    parts: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise ValueError(f"it leaves a message of the {role} out, or repeats it")
        parts.append(before)
    return [*parts, text]


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many first elements two sequences (texts, token ids) have in common."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def token_span(offsets: Sequence[Span], characters: Span) -> Span:
    """Return the range of tokens that overlap a range of characters.

    A token that is only partly within the characters counts.

    Args:
        offsets: Range of characters of each token, ascending.
        characters: The range of characters to look up.

    Returns:
        ``(start, stop)`` in tokens; an empty span where there are no characters.
    """
    start, stop = characters
    first = bisect_right(offsets, start, key=lambda offset: offset[1])
    return first, first if start == stop else bisect_left(offsets, stop, key=lambda offset: offset[0])
