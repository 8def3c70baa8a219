"""The table of poolings: over which tokens of a rollout activations are pooled, and how.

A pooling is a *span* of tokens and a way to *combine* them. Code that depends on a property of a pooling (whether it
has a value for an empty response, whether it keeps every token) reads it from the entry and never parses the name.

To add a pooling, add an entry to ``_TABLE``. One that combines tokens in a new way also needs an accumulator in
``workers/pooling.py``, and a line in ``workers/builtin/passes/plain_pass.py``, which recomputes it independently for
the canary. Imports nothing but errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .errors import InputError, closest

Span = Literal["prompt", "user", "response"]
"""A range of a rollout's tokens; see ``TokenSpans``."""

Combine = Literal["mean", "last", "every"]
"""``mean`` over all tokens of the span, ``last`` token of the span, or ``every`` token separately."""

TokenRange = tuple[int, int]
"""``(start, stop)`` in tokens, end exclusive."""


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """The token spans of one response, as ranges of its conversation.

    Attributes:
        response: Content tokens of the response, without template tokens and the end-of-turn token. The prompt is
            everything before it, ``[0, start)``, template tokens included.
        user: Content tokens of the last user message before the response, without template tokens and without a system
            prompt that the template puts into the same message. None when no pooling needs them: they are located only
            on demand.
    """

    response: TokenRange
    user: TokenRange | None = None

    def of(self, span: Span) -> TokenRange:
        """Return the token range of one span.

        Args:
            span: ``prompt``, ``user`` or ``response``.

        Raises:
            ValueError: The span is ``user``, and the user's message was not located.
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
        name: Name in specs and commands, and part of the paths in a store, so it must never change.
        span: The tokens that it pools.
        combine: How it combines them.
        summary: One phrase that describes it, for documents and messages.
    """

    name: str
    span: Span
    combine: Combine
    summary: str

    @property
    def keeps_tokens(self) -> bool:
        """Whether it keeps one vector per token of its span instead of one per rollout."""
        return self.combine == "every"

    @property
    def defined_without_response(self) -> bool:
        """Whether it has a value for a rollout with an empty response; if not, the value is NaN."""
        return self.span != "response"

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether it needs every token of the prompt, and not the last alone."""
        return self.span == "prompt" and self.combine != "last"

    @property
    def needs_user_span(self) -> bool:
        """Whether the user's message must be located when a conversation is rendered."""
        return self.span == "user"

    def has_value(self, num_content_tokens: int, *, is_reached: bool = True) -> bool:
        """Return whether a rollout has a value in this pooling.

        Args:
            num_content_tokens: Number of content tokens of its response.
            is_reached: Whether the model was asked; False for the turns after the end of a dialogue.
        """
        return num_content_tokens > 0 or (is_reached and self.defined_without_response)


DEFAULT_POOLING = "response_mean"
"""The pooling that is captured, queried and reduced by default."""

DEFAULT_PROMPT_POOLING = "prompt_last"
"""The pooling that is captured by default where prompts have no response."""

TOKENS = "tokens"
"""The pooling that keeps every content token of a response, at chosen layers, instead of pooling them."""

_TABLE = (
    Pooling(DEFAULT_POOLING, "response", "mean", "the mean over the content tokens of the response"),
    Pooling("response_last", "response", "last", "the last content token of the response"),
    Pooling("prompt_mean", "prompt", "mean", "the mean over every token before the response, the template's included"),
    Pooling(DEFAULT_PROMPT_POOLING, "prompt", "last", "the last token before the response"),
    # By definition the same token as prompt_last: everything between the user's message and the response (end of turn,
    # name of the next role, an empty reasoning section) is written by the template, and its last token is the last of
    # the prompt. An alias, because work on persona vectors uses this name.
    Pooling("assistant_start", "prompt", "last", "the last token that the template writes before the response"),
    Pooling("user_mean", "user", "mean", "the mean over the content tokens of the last message of the user"),
    Pooling(TOKENS, "response", "every", "every content token of the response, at the layers of capture.token_layers"),
)

POOLINGS: Mapping[str, Pooling] = MappingProxyType({pooling.name: pooling for pooling in _TABLE})
"""All poolings by name."""


def pooling_named(name: str) -> Pooling:
    """Look up a pooling by name.

    Args:
        name: Name of an entry of the table.

    Raises:
        InputError: There is no pooling of that name; lists all names.
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
    """Return whether a pooling keeps every token; False for an unknown name.

    For callers that get the name from a command or a record, and leave it to a later lookup to refuse an unknown one.
    """
    return name in POOLINGS and POOLINGS[name].keeps_tokens


def validate_pooling_name(name: str) -> str:
    """Validate the name of a pooling in a spec and return it.

    Raises:
        ValueError: There is no pooling of that name; lists all names.
    """
    if name not in POOLINGS:
        suggestion = closest(name, POOLINGS)
        raise ValueError(f"a pooling is one of {', '.join(POOLINGS)}{f' ({suggestion})' if suggestion else ''}")
    return name


def prompt_poolings() -> list[str]:
    """Return the poolings that are defined without a response."""
    return [pooling.name for pooling in _TABLE if pooling.defined_without_response]


def pooled_names(names: Iterable[str]) -> list[str]:
    """Return the poolings that give one vector per rollout, without those that keep every token."""
    return [name for name in names if not pooling_named(name).keeps_tokens]
