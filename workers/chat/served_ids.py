"""Compare the token ids that a server sampled with the text that it returned. Knows nothing of templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\ufffd"
"""Decoders write it for half a character, which a response that was cut may end with; servers leave it out."""


def count_content(encoder: Any, token_ids: Sequence[int], text: str, *, has_ended: bool) -> int | None:
    """Count the tokens of a response that are content, which are all but an end-of-turn token.

    Spaces are not compared: a decoder may drop one at the start of a text, or before punctuation.

    Args:
        encoder: The model's tokenizer, as ``offsets.offsets_encoder`` returns it.
        token_ids: The sampled ids.
        text: The text that the server returned for them.
        has_ended: Whether the model ended its turn, so that the last token may be the end-of-turn token.

    Returns:
        The number of content tokens, the first of ``token_ids``; None if the ids do not spell the text.
    """
    if any(token >= encoder.get_vocab_size(with_added_tokens=True) for token in token_ids):
        return None
    last = token_ids[-1] if token_ids else None
    added = encoder.get_added_tokens_decoder()
    ends = has_ended and last is not None and last in added and added[last].special
    lengths = [len(token_ids) - 1] if ends else [len(token_ids), *([len(token_ids) - 1] if has_ended else [])]
    asked = _letters(text)
    return next((length for length in lengths if _letters(encoder.decode(token_ids[:length])) == asked), None)


def _letters(text: str) -> str:
    return "".join(text.split()).strip(_REPLACEMENT)
