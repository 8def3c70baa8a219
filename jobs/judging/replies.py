"""Read a judge's reply: the score that it gives, a refusal, or why it cannot be read.

The rubrics ask for a number and nothing else, and judges add things to it. A number counts if it is plain that it is
the score: it is the whole reply, the reply begins with it, or a word such as "score" stands before it. With a second
number it is not plain which of them is meant, so such a reply is not read, and neither is one whose number is off the
scale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..personas import Kind
from .outcomes import SCALES, is_on_scale


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read from one reply.

    Attributes:
        score: The score; None where there is none.
        is_refusal: Whether the judge says that the response refuses to answer.
        problem: Why nothing could be read, in a few words; empty where something was.
    """

    score: float | None = None
    is_refusal: bool = False
    problem: str = ""


_THOUGHTS = re.compile(r"\A.*</(?:think|thinking|thought|reasoning)>", re.DOTALL)
_DECORATION = "\\s*_`\"'\u201c\u201d\u2018\u2019()\\[\\]{}<>#"
_NUMBER = re.compile(r"(?<![\w.,])[-\u2212]?[0-9]+(?:\.[0-9]+)?(?!\w|[.,][0-9])")
_DIGIT = re.compile(r"\d")
_OF_SCALE = re.compile(rf"[{_DECORATION}]*(?:/|\bout\s+of\b|\bof\b)[{_DECORATION}]*")
_LABEL = re.compile(
    rf"\b(?:score|rating|grade|answer|verdict|digit|number)(?:\s+(?:is|of|would\s+be))?"
    rf"[{_DECORATION}]*[:=\u2013\u2014-]?[{_DECORATION}]*\Z",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r"[.)][ \t]+\S")
_REFUSAL = re.compile(rf"\A[{_DECORATION}]*REFUSAL\b")
_BARE_REFUSAL = re.compile(rf"\A[{_DECORATION}]*refusal[{_DECORATION}.!]*\Z", re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """Leave out what a judge reasons before it answers: all up to the last closing tag such as ``</think>``."""
    return _THOUGHTS.sub("", text)


def read_reply(kind: Kind, text: str, *, is_cut: bool = False) -> Reading:
    """Read the score in a judge's reply.

    Args:
        kind: ``role``: a digit from 0 to 3. ``trait``: a number from 0 to 100, or REFUSAL.
        text: The reply.
        is_cut: Whether the reply was cut at its greatest length, so that its last number may be incomplete.

    Returns:
        The reading, with a score on the scale of the kind, a refusal or a problem.

    Example:
        >>> read_reply("role", "3").score, read_reply("trait", "Score: 85/100").score
        (3.0, 85.0)
        >>> read_reply("trait", "REFUSAL").is_refusal, read_reply("role", "2 or 3").problem
        (True, 'it has several numbers: 2, 3')
    """
    said = without_thoughts(text)
    if not said.strip():
        return Reading(problem="it is empty")
    has_digit = _DIGIT.search(said) is not None
    if kind == "trait" and not has_digit and (_REFUSAL.search(said) or _BARE_REFUSAL.search(said)):
        return Reading(is_refusal=True)
    numbers = list(_NUMBER.finditer(said))
    spelt = [number.group() for number in numbers]
    if not has_digit:
        return Reading(problem="it has no number")
    # A digit outside of what was found, as in "1,5" or "p3", is a number of another form.
    if not numbers or _DIGIT.search(_NUMBER.sub("", said)):
        return Reading(problem="its number is of no form that is known")
    if len(numbers) == 2 and _is_scale(kind, said, numbers):
        numbers = numbers[:1]
    if len(numbers) > 1:
        return Reading(problem=f"it has several numbers: {', '.join(spelt[:4])}")
    return _read_number(kind, said, numbers[0], is_cut=is_cut)


def _is_scale(kind: Kind, said: str, numbers: list[re.Match[str]]) -> bool:
    """Whether the second of two numbers is the top of the scale, as in 85/100 and 3 out of 3."""
    between = said[numbers[0].end() : numbers[1].start()]
    return numbers[1].group() == str(SCALES[kind][1]) and _OF_SCALE.fullmatch(between) is not None


def _read_number(kind: Kind, said: str, number: re.Match[str], *, is_cut: bool) -> Reading:
    before, after = said[: number.start()], said[number.end() :]
    spelt = number.group()
    begins = not before.strip() or re.fullmatch(rf"[{_DECORATION}]*", before) is not None
    if not begins and not _LABEL.search(before):
        return Reading(problem=f"it does not say that {spelt} is the score")
    if begins and _LIST_ITEM.match(after):
        return Reading(problem=f"its {spelt} may be the number of a list")
    if is_cut and not after:
        return Reading(problem=f"it was cut at {spelt}, which may go on")
    value = float(spelt.replace("\u2212", "-"))
    if not is_on_scale(kind, value):
        lowest, highest = SCALES[kind]
        return Reading(problem=f"{spelt} is not from {lowest} to {highest}")
    if kind == "role" and value != int(value):
        return Reading(problem=f"{spelt} is not one of 0, 1, 2 and 3")
    return Reading(score=abs(value))
