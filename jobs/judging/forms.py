"""The forms of a judge's reply: a score of a kind of persona, or one label of a rubric. Plain values and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..personas import Kind
from .labels import read_label
from .replies import Reading, read_reply


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """What a judge is to reply with, and how that is read.

    Attributes:
        choices: The replies that the rubric asks for. An engine that holds a response to them gives a readable one.
        reminders: What is added to the prompt when the judge is asked for the second and for the third time: the same
            prompt would be answered in the same way.
        read: Reads a reply; the second argument tells whether it was cut at its greatest length.
    """

    choices: tuple[str, ...]
    reminders: tuple[str, str]
    read: Callable[[str, bool], Reading]


def _scores(kind: Kind, choices: tuple[str, ...], reminders: tuple[str, str]) -> ReplyForm:
    return ReplyForm(choices, reminders, partial(_read_score, kind))


def _read_score(kind: Kind, text: str, is_cut: bool) -> Reading:
    return read_reply(kind, text, is_cut=is_cut)


SCORE_FORMS: Mapping[Kind, ReplyForm] = {
    "role": _scores(
        "role",
        ("0", "1", "2", "3"),
        (
            "Answer with one digit from 0 to 3, and with nothing else.",
            "Your whole answer must be one of these four: 0, 1, 2 or 3. Do not explain it.",
        ),
    ),
    "trait": _scores(
        "trait",
        (*(str(score) for score in range(101)), "REFUSAL"),
        (
            "Answer with one whole number from 0 to 100 or with the word REFUSAL, and with nothing else.",
            "Your whole answer must be one number from 0 to 100, or REFUSAL. Do not explain it.",
        ),
    ),
}
"""The form of the score of each kind that is judged."""


def label_form(labels: Sequence[str]) -> ReplyForm:
    """Make the form of a reply that names one of several labels; its score is the place of the label.

    Args:
        labels: The labels, at least two.

    Example:
        >>> form = label_form(["assistant", "human"])
        >>> form.read("Human", False).score, form.reminders[0]
        (1.0, 'Answer with one of these words, and with nothing else: assistant, human.')
    """
    words = ", ".join(labels)
    reminders = (
        f"Answer with one of these words, and with nothing else: {words}.",
        f"Your whole answer must be one of these: {words}. Do not explain it.",
    )
    return ReplyForm(tuple(labels), reminders, partial(_read_label, tuple(labels)))


def _read_label(labels: tuple[str, ...], text: str, is_cut: bool) -> Reading:
    return read_label(labels, text, is_cut=is_cut)
