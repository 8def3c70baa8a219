"""Where characters of a template's rendering lie, and which tokens they became: placeholders and a tokenizer's offsets.

What is common to the spans of responses (``spans``) and of the user's words (``user_span``). Knows nothing of messages.
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
    """Copy the part of a tokenizer that says which characters each token came from.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        A ``tokenizers.Tokenizer`` that neither cuts nor pads a text, nor adds special tokens: the template writes them.

    Raises:
        InputError: The tokenizer does not tell where its tokens lie.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"its tokenizer ({type(tokenizer).__name__}) does not tell where in a text its tokens lie.",
            code="slow_tokenizer",
            field="model.source",
            hint="Save the tokenizer in the tokenizer.json format.",
        )
    encoder = copy.deepcopy(backend)
    encoder.no_truncation()
    encoder.no_padding()
    # It adds special tokens, which the template writes itself, and leaves spaces out of the offsets.
    encoder.post_processor = None
    return encoder


def cut_at(text: str, marks: Sequence[str], whose: str) -> list[str]:
    """Cut a rendering at its placeholders.

    Args:
        text: Rendered with a placeholder in place of some messages.
        marks: The placeholders, in the order in which they must stand, each once.
        whose: Who speaks the messages that they stand for: ``assistant`` or ``user``; for the error.

    Returns:
        What stands around them: one part more than there are of them.

    Raises:
        ValueError: A placeholder is missing or stands there twice.
    """
    parts: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise ValueError(f"it leaves a message of the {whose} out, or repeats it")
        parts.append(before)
    return [*parts, text]


def token_span(offsets: Sequence[Span], characters: Span) -> Span:
    """Return the tokens that hold any of some characters.

    A token that holds some of these characters and others besides counts.

    Args:
        offsets: The characters of each token, ascending.
        characters: The characters asked for.

    Returns:
        ``(start, stop)`` in tokens; an empty span where there are no characters.
    """
    start, stop = characters
    first = bisect_right(offsets, start, key=lambda offset: offset[1])
    return first, first if start == stop else bisect_left(offsets, stop, key=lambda offset: offset[0])
