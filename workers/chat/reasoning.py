"""Reasoning in chats: tags that open and close it, in every spelling, and where a text is inside of it.

A tag is a word about thinking in brackets, such as ``<think>``, ``[THINK]``, ``<|START_THINKING|>`` or
``<seed:think>``; it closes where it has a slash or the word ``end``. Knows neither templates nor tokenizers.
"""

from __future__ import annotations

import re

from .offsets import common_length

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names under which messages and templates have the reasoning before a content, the commonest first."""

_TAG = re.compile(
    r"""
    [<\[\u25c1]                                     # an opening bracket; Kimi's is a triangle
    (?P<name> (?! /?\|? no[_-]? ) [^<>\[\]\u25c1\u25b7\s]{0,24}?
        (?: think | thought | reason | reflect | analy[sz] | scratchpad | monolog | rational | deliberat )
        [^<>\[\]\u25c1\u25b7\s]{0,24} )
    [>\]\u25b7]
    | <\|channel\|?> \s* (?P<channel> analysis | thought ) \b  # a channel of its own, closed by the next message
    | (?<= [>\]] ) \s* (?P<bare> think(?:ing)? | thoughts? | reasoning | analysis ) \s* :? \s* \Z  # as a speaker
    """,
    re.VERBOSE | re.IGNORECASE,
)
_OTHER_TAG = re.compile(r"[<\[](?P<name>(?!no_?think)[A-Za-z][\w:-]*)[>\]]\s*\Z")
_CLOSES = re.compile(r"/|\bend|end[_-]|[_-]end", re.IGNORECASE)
_CHANNEL_END = re.compile(r"<\|end\|>|<\|channel\|>final|<channel\|>|<\|return\|>", re.IGNORECASE)

_CHANNEL_HEADER = re.compile(r"<\|channel\|?>\s*\w*", re.IGNORECASE)


def open_tag(text: str) -> str | None:
    r"""Return the tag of reasoning that a text opens and does not close; None if it ends outside of reasoning.

    Example:
        >>> open_tag("<think>\n"), open_tag("<think>\n\n</think>\n\n")
        ('<think>', None)
    """
    tags = list(_TAG.finditer(text))
    if not tags:
        return None
    last = tags[-1]
    if last["channel"]:
        return None if _CHANNEL_END.search(text, last.end()) else last[0]
    if last["bare"]:
        return last[0].strip()
    return None if _CLOSES.search(last["name"]) else last[0]


def opened_by_prompt(prompt: str, history: str) -> str | None:
    r"""Return the tag in which the prompt of a response leaves it; None if it is outside of every tag.

    Args:
        prompt: What a template writes between the user's message and the response that is to be generated.
        history: What it writes between the user's message and the same response once that exists.

    Returns:
        A tag of reasoning, or another one that is only in the prompt: what a model writes behind it is not what the
        template takes for its response.

    Example:
        >>> opened_by_prompt("<|im_start|>assistant\n<draft>", "<|im_start|>assistant\n")
        '<draft>'
    """
    found = open_tag(prompt)
    if found is not None:
        return found
    shared = common_length(prompt, history)
    other = _OTHER_TAG.search(prompt[shared:])
    return other[0].strip() if other else None


def channel_left_to_model(prompt: str, history: str) -> str | None:
    r"""Return the header of a channel that stands before a response and that its prompt leaves to the model to write.

    A model that chooses the channel may open one of reasoning first, although its prompt opens none.

    Args:
        prompt: What a template writes between the user's message and the response that is to be generated.
        history: What it writes between the user's message and the same response once that exists.

    Example:
        >>> channel_left_to_model("<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>")
        '<|channel|>final'
    """
    header = _CHANNEL_HEADER.search(history)
    if header is None or _CHANNEL_HEADER.search(prompt) is not None:
        return None
    return header[0]


def reasons_in_text(text: str) -> bool:
    """Whether a response has reasoning among its content: it opens with such a tag, or has a closing one alone.

    Example:
        >>> reasons_in_text("<think>Hm.</think>Yes."), reasons_in_text("Hm.</think>Yes."), reasons_in_text("Yes.")
        (True, True, False)
    """
    found = list(_TAG.finditer(text))
    if not found:
        return False
    first = found[0]
    closes = first["name"] is not None and _CLOSES.search(first["name"]) is not None
    return closes or not text[: first.start()].strip()
