"""The text of a response while its tokens come: whole characters only, and an end at a stop string. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
"""What decoders write for bytes that are no character, such as the first bytes of one that is not complete yet."""

_MOST_WAITING = 16
"""Tokens after which text is shown although its end is no character: a character has at most four bytes."""


class TextStream:
    """Decodes a response token by token.

    Tokens are decoded together with those before them, because the text of a token may depend on its neighbours: some
    tokenizers drop a space at the start of a text, and the bytes of a character may be spread over tokens.

    Args:
        decode: Decodes token ids.
        stops: Texts that end the response; the text shown ends before the first of them.

    Attributes:
        text: The text shown so far.
        is_stopped: Whether a stop string was found, so that no more text follows.

    Example:
        >>> stream = TextStream(lambda ids: "".join(map(chr, ids)), stops=("END",))
        >>> [stream.add(ord(letter)) for letter in "oh EN"]
        ['o', 'h', ' ', '', '']
        >>> stream.add(ord("!")), stream.finish()
        ('EN!', '')
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # The tokens from ``_before`` to ``_shown`` are decoded again with the new ones, as their context.
        self._before = self._shown = 0
        self._held = ""
        self.text = ""
        self.is_stopped = False

    @property
    def num_tokens(self) -> int:
        """Number of tokens so far."""
        return len(self._ids)

    def token(self, place: int) -> int:
        """Return the token id at an index."""
        return self._ids[place]

    def add(self, token: int) -> str:
        """Add a token; return the text that can be shown now."""
        self._ids.append(token)
        return self._show(self._new_text(is_last=False))

    def finish(self) -> str:
        """Return the text that was held back; no token follows."""
        shown = self._show(self._new_text(is_last=True))
        held, self._held = ("" if self.is_stopped else self._held), ""
        self.text += held
        return shown + held

    def _new_text(self, *, is_last: bool) -> str:
        known = self._decode(self._ids[self._before : self._shown])
        whole = self._decode(self._ids[self._before :])
        waiting = len(self._ids) - self._shown
        if not is_last and whole.endswith(_INCOMPLETE) and waiting < _MOST_WAITING:
            return ""
        self._before, self._shown = self._shown, len(self._ids)
        return whole[len(known) :]

    def _show(self, new: str) -> str:
        """Return the part of the text that is before any stop string, whole or begun, and keep the rest."""
        if self.is_stopped:
            return ""
        held = self._held + new
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = held[: min(found)], ""
        else:
            begun = max((_length_begun(held, stop) for stop in self._stops), default=0)
            shown, self._held = held[: len(held) - begun], held[len(held) - begun :]
        self.text += shown
        return shown


def _length_begun(text: str, stop: str) -> int:
    """Return the length of the longest end of a text with which a stop string begins."""
    return next((length for length in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:length])), 0)
