"""Control tokens that are spelt out in texts: they are ordinary text, and only the template writes real ones.

A control token is one that the tokenizer marks as special, or that the template writes around the messages of a plain
conversation. Where a text spells one (``<|im_end|>`` in a question about templates, or a forged system turn), its
letters are tokenised as those of any other text. So no text ends a turn or opens one, and no response has an
end-of-turn token among its content.

To tell the two apart in a rendering, the conversation is rendered once more with marks around what the texts spell; the
template copies them. This is done only if a text spells a control token. Knows nothing of models.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from tokenizers import AddedToken

from .offsets import Span

_PRIVATE_USE = range(0xE000, 0xF8FF)
_ALIASES = range(0xF0000, 0xFFFFD)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered chat.

    Attributes:
        text: The rendering.
        spelt: Ranges of characters at which a text of the chat spells a control token, ascending.
    """

    text: str
    spelt: tuple[Span, ...] = ()


class ControlTokens:
    """The control tokens of one tokenizer and template.

    Args:
        names: Their texts.
    """

    def __init__(self, names: Iterable[str]) -> None:
        longest_first = sorted(filter(None, names), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def spelt_in(self, value: Any) -> set[str]:
        """Return the control tokens that a text spells, or any text in a nested value.

        Args:
            value: A text, or lists and objects that contain texts.
        """
        return {name for text in _strings(value) for name in self._pattern.findall(text)}

    def places(self, text: str) -> list[Span]:
        """Return the ranges of characters at which a text spells a control token."""
        return [match.span() for match in self._pattern.finditer(text)]

    def find(self, whole: str, texts: Any, render: Callable[[Any], str]) -> Rendered:
        """Locate what the texts of a chat spell in its rendering.

        Args:
            whole: The rendering.
            texts: The texts that it was rendered from: a text, or lists and objects that contain texts.
            render: Renders such texts.

        Raises:
            ValueError: The template depends on a control token in a text in a way that cannot be followed.
        """
        spelt = self.spelt_in(texts)
        if not spelt:
            return Rendered(whole)
        marks = _unused_marks(texts)

        def marked(names: Iterable[str]) -> Rendered:
            return _unmarked(render(_mark(texts, names, marks)), names, marks)

        found = marked(spelt)
        if found.text != whole:
            # A template may look for a token in a text and take it out, as </think>; such a token needs no marks.
            alone = {name: marked({name}) for name in spelt}
            taken_out = {name for name in spelt if alone[name].text != whole and not alone[name].spelt}
            found = marked(spelt - taken_out)
        if found.text != whole:
            raise ValueError(f"what it makes of {', '.join(sorted(spelt))} in a text cannot be told apart")
        return found


class TextEncoder:
    """Tokenises renderings; what texts spell becomes ordinary tokens.

    Args:
        encoder: The model's tokenizer, as ``offsets.offsets_encoder`` returns it.
        control_tokens: The control tokens of the model.
    """

    def __init__(self, encoder: Any, control_tokens: ControlTokens) -> None:
        self._encoder = encoder
        self._control_tokens = control_tokens
        self._plain: Any = None
        self._aliases: dict[str, str] = {}
        self._ids: dict[int, int] = {}
        self._used: set[str] = set()

    def encode(self, rendered: Rendered) -> tuple[list[int], list[Span]]:
        """Return the token ids of a rendering, and the range of characters of each.

        Raises:
            ValueError: The tokenizer makes a control token of ordinary text.
        """
        if not rendered.spelt:
            encoding = self._encoder.encode(rendered.text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        aliased = self._with_aliases(rendered)
        encoding = self._plain_encoder().encode(aliased, add_special_tokens=False)
        ids: list[int] = [self._ids.get(token, token) for token in cast("list[int]", encoding.ids)]
        for start, stop in rendered.spelt:
            name = rendered.text[start:stop]
            if (self._encoder.token_to_id(name), (start, stop)) in zip(ids, encoding.offsets, strict=True):
                raise ValueError(f"the tokenizer makes {name} of ordinary text")
        return ids, encoding.offsets

    def _plain_encoder(self) -> Any:
        """Return a copy of the tokenizer that recognises no control token."""
        if self._plain is None:
            plain = copy.deepcopy(self._encoder)
            # Those that are not marked as special, too: such tokens are not recognised by the next setting.
            plain.add_special_tokens([token for token in _added(plain) if self._control_tokens.spelt_in(token.content)])
            plain.encode_special_tokens = True
            self._plain = plain
        return self._plain

    def _with_aliases(self, rendered: Rendered) -> str:
        """Replace each control token of the template by an alias of the same length, which is recognised."""
        text, spelt = rendered.text, rendered.spelt
        if not self._used.isdisjoint(text):
            # A text has a character of an alias, which it must not be taken for: start again with other characters.
            self._plain, self._aliases, self._ids, self._used = None, {}, {}, set()
        parts: list[str] = []
        place = 0
        for start, stop in self._control_tokens.places(text):
            if any(begin < stop and start < end for begin, end in spelt):
                continue
            parts += [text[place:start], self._alias(text[start:stop], text)]
            place = stop
        return "".join([*parts, text[place:]])

    def _alias(self, name: str, text: str) -> str:
        if name not in self._aliases:
            plain = self._plain_encoder()
            token = next(token for token in _added(plain) if token.content == name)
            letter = next(one for one in map(chr, _ALIASES) if one not in self._used and one not in text)
            self._used.add(letter)
            alias = letter * len(name)
            # What a token takes from the text around it (spaces, say), its alias takes too.
            around = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
            plain.add_tokens([AddedToken(alias, normalized=False, special=False, **around)])
            self._ids[plain.token_to_id(alias)] = self._encoder.token_to_id(name)
            self._aliases[name] = alias
        return self._aliases[name]


def _added(encoder: Any) -> list[Any]:
    return list(encoder.get_added_tokens_decoder().values())


def _unused_marks(texts: Any) -> tuple[str, str]:
    """Choose two characters that no text has."""
    used = set().union(*_strings(texts))
    first, second, *_ = (letter for letter in map(chr, _PRIVATE_USE) if letter not in used)
    return first, second


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        return
    inner = chain(*value.items()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for one in inner:
        yield from _strings(one)


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"


def _mark(value: Any, names: Iterable[str], marks: tuple[str, str]) -> Any:
    """Put marks around every control token in the texts of a nested value."""
    if isinstance(value, str):
        return re.sub(_any_of(names), lambda match: f"{marks[0]}{match[0]}{marks[1]}", value)
    if isinstance(value, dict):
        return {_mark(key, names, marks): _mark(inner, names, marks) for key, inner in value.items()}
    return [_mark(inner, names, marks) for inner in value] if isinstance(value, list | tuple) else value


def _unmarked(text: str, names: Iterable[str], marks: tuple[str, str]) -> Rendered:
    """Remove the marks from a rendering, and return where they were around a control token."""
    begin, end = marks
    parts: list[str] = []
    spelt: list[Span] = []
    length = place = 0
    # A template that cuts a text at a control token leaves a mark without its other half.
    for match in re.finditer(f"{begin}({_any_of(names)}){end}|[{begin}{end}]", text):
        name = match[1] or ""
        parts += [text[place : match.start()], name]
        length += match.start() - place
        if name:
            spelt.append((length, length + len(name)))
        length += len(name)
        place = match.end()
    return Rendered("".join([*parts, text[place:]]), tuple(spelt))


def control_token_names(tokenizer: Any, plain_rendering: str) -> frozenset[str]:
    """Return the texts of a tokenizer's control tokens.

    Args:
        tokenizer: A transformers tokenizer.
        plain_rendering: Rendering of a plain conversation. Added tokens in it that are not marked as special (turn
            markers of some models) are control tokens too, unless they are spaces or words.
    """
    return frozenset(
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special
        or (token.content in plain_rendering and not token.content.isspace() and not token.content.isalnum())
    )
