"""Guided decoding: responses that must be one of some texts, by leaving every other token out of the logits.

At each step the tokens that may follow are those by which a text goes on that begins with what was sampled so far, and
the end of the turn once a text is complete. Axes: B rows of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..loaded_model import LoadedModel


class Choices:
    """Restricts logits to the texts that a request allows.

    Args:
        encode: Returns the token ids of a text, without special tokens.
        stop_ids: Tokens that end a response.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]], stop_ids: frozenset[int]) -> None:
        self._encode = encode
        self._stop_ids = sorted(stop_ids)
        self._encoded: dict[tuple[str, ...], list[tuple[int, ...]]] = {}

    def following(self, choices: tuple[str, ...], token_ids: Sequence[int]) -> list[int]:
        """Return the tokens that may come next, ascending.

        Args:
            choices: The allowed texts; at least one.
            token_ids: Token ids sampled so far, by which at least one of them begins.
        """
        if choices not in self._encoded:
            self._encoded[choices] = [tuple(self._encode(text)) for text in choices]
        done, length = tuple(token_ids), len(token_ids)
        found: set[int] = set()
        for text in self._encoded[choices]:
            if text[:length] == done:
                found.update(self._stop_ids if len(text) == length else text[length : length + 1])
        return sorted(found)

    def restrict(self, logits_BV: torch.Tensor, rows: Sequence[tuple[tuple[str, ...], Sequence[int]]]) -> torch.Tensor:
        """Return logits that are -inf for every token that may not come next.

        Args:
            logits_BV: Logits, ``(B, V)``; not changed.
            rows: For each row the allowed texts, none for any, and the token ids sampled so far.
        """
        guided = [(row, self.following(*asked)) for row, asked in enumerate(rows) if asked[0]]
        if not guided:
            return logits_BV
        restricted_BV = logits_BV.clone()
        for row, allowed in guided:
            restricted_BV[row] = float("-inf")
            restricted_BV[row, allowed] = logits_BV[row, allowed]
        return restricted_BV


def choices_of(loaded: LoadedModel) -> Choices:
    """Make the ``Choices`` of a model.

    Args:
        loaded: The model, whose tokenizer spells the texts and whose tokens end them.
    """
    return Choices(lambda text: loaded.tokenizer.encode(text, add_special_tokens=False), loaded.stop_ids)
