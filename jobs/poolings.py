"""Poolings: which tokens of a rollout are kept, and how they become one vector. The one place that names them.

A pooling is a *span* of tokens and a way to *combine* them. Whoever has to know something about a pooling (whether it
has a value for an empty response, whether it keeps every token) asks its entry here and never takes its name apart.

To add a pooling, add an entry to ``POOLINGS``. One that combines tokens in a new way needs an accumulator besides, in
``workers/pooling.py``, and one line in ``workers/builtin/plain_pass.py``, which recomputes it independently.
Imports nothing but errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .errors import InputError, closest

Span = Literal["prompt", "user", "response"]
"""Which tokens: see ``TokenSpans``."""

Combine = Literal["mean", "last", "every"]
"""``mean`` of all tokens of the span, the ``last`` of them, or ``every`` one for itself."""

TokenRange = tuple[int, int]
"""``(start, stop)`` in tokens, end exclusive."""


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """Where the spans of one response lie in its conversation, in tokens.

    Attributes:
        response: Content tokens of the response: no template token, no end-of-turn token. The prompt is all that comes
            before it, ``[0, start)``, the template's tokens included.
        user: Content tokens of the last message of the user before the response: the user's own words alone, without
            the template's tokens and without a system prompt that a template puts into the same message. None where
            no pooling wanted them, so that nobody looked for them.
    """

    response: TokenRange
    user: TokenRange | None = None

    def of(self, span: Span) -> TokenRange:
        """Return one span.

        Args:
            span: Which.

        Raises:
            ValueError: It is ``user``, and the tokens of the user's message were not looked for.
        """
        if span == "response":
            return self.response
        if span == "prompt":
            return 0, self.response[0]
        if self.user is None:
            raise ValueError("the tokens of the user's message are not known")
        return self.user


@dataclass(frozen=True, slots=True)
class Pooling:
    """One entry of the table.

    Attributes:
        name: What specs, stores and commands call it; part of a store's paths.
        span: Which tokens of a rollout.
        combine: How they become a value.
        summary: What it is, in one phrase, for documents and messages.
    """

    name: str
    span: Span
    combine: Combine
    summary: str

    @property
    def keeps_tokens(self) -> bool:
        """Whether it keeps a vector for every token of its span, in place of one for the rollout."""
        return self.combine == "every"

    @property
    def defined_without_response(self) -> bool:
        """Whether it has a value for a rollout whose response is empty; the others are NaN there."""
        return self.span != "response"

    @property
    def needs_user_span(self) -> bool:
        """Whether the tokens of the user's message must be found when a conversation is rendered."""
        return self.span == "user"

    def has_value(self, num_content_tokens: int) -> bool:
        """Say whether a rollout has numbers in this pooling.

        Args:
            num_content_tokens: Content tokens of its response.
        """
        return num_content_tokens > 0 or self.defined_without_response


DEFAULT_POOLING = "response_mean"
"""What is captured, queried and reduced where nobody names a pooling."""

TOKENS = "tokens"
"""The pooling that pools nothing: every content token of a response, at chosen layers."""

_TABLE = (
    Pooling(DEFAULT_POOLING, "response", "mean", "the mean over the content tokens of the response"),
    Pooling("response_last", "response", "last", "the last content token of the response"),
    Pooling("prompt_mean", "prompt", "mean", "the mean over every token before the response, the template's included"),
    Pooling("prompt_last", "prompt", "last", "the last token before the response"),
    # The same token as prompt_last, by definition: whatever stands between the user's message and the response (the
    # end of the turn, the name of the next speaker, an empty block of reasoning) is the template's, and the last of
    # these tokens is the last of the prompt. Work on persona vectors asks for it by this name.
    Pooling("assistant_start", "prompt", "last", "the last token that the template writes before the response"),
    Pooling("user_mean", "user", "mean", "the mean over the content tokens of the last message of the user"),
    Pooling(TOKENS, "response", "every", "every content token of the response, at the layers of capture.token_layers"),
)

POOLINGS: Mapping[str, Pooling] = MappingProxyType({pooling.name: pooling for pooling in _TABLE})
"""Every pooling by its name."""


def pooling_named(name: str) -> Pooling:
    """Look a pooling up.

    Args:
        name: Of an entry of the table.

    Raises:
        InputError: There is none of that name; lists those that there are.
    """
    found = POOLINGS.get(name)
    if found is None:
        raise InputError(
            f"{name!r} is not a pooling.",
            code="unknown_pooling",
            field="pooling",
            hint=" ".join(filter(None, [closest(name, POOLINGS), f"Known: {', '.join(POOLINGS)}."])),
        )
    return found


def keeps_tokens(name: str) -> bool:
    """Say whether a pooling keeps every token; False for a name that is not in the table.

    For commands and records that name a pooling which is looked up, and refused by name, later.
    """
    return name in POOLINGS and POOLINGS[name].keeps_tokens


def pooling_name(name: str) -> str:
    """Validate a name for a spec.

    Raises:
        ValueError: There is no such pooling; lists those that there are.
    """
    if name not in POOLINGS:
        suggestion = closest(name, POOLINGS)
        raise ValueError(f"a pooling is one of {', '.join(POOLINGS)}{f' ({suggestion})' if suggestion else ''}")
    return name


def pooled_names(names: Iterable[str]) -> list[str]:
    """Leave out the poolings that keep every token: those that remain give one vector a rollout."""
    return [name for name in names if not pooling_named(name).keeps_tokens]
