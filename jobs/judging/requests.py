"""Requests to a judge: the rubric of a persona with question and answer filled in. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .forms import ReplyForm

ASKS = 3
"""How often a judge is asked about a rollout, in all, until its reply can be read."""

_FIELDS = re.compile(r"\{(question|answer)\}")


@dataclass(frozen=True, slots=True)
class Judged:
    """A rollout to be judged.

    Attributes:
        row: Row of the rollout in the activation arrays.
        unit_id: Unit of the rollout.
        form: What the judge is to reply with.
        prompt: The rubric with question and answer filled in.
        num_tokens: Estimated number of tokens of the prompt.
    """

    row: int
    unit_id: str
    form: ReplyForm
    prompt: str
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One request to a judge.

    Attributes:
        judged: The rollout that is asked about.
        ask: How often it was asked about with this request, from 1.
        unread: How many replies about it could not be read.
    """

    judged: Judged
    ask: int = 1
    unread: int = 0

    @property
    def prompt(self) -> str:
        """The text of the request: after a reply that could not be read with a reminder of the form it must have."""
        if not self.unread:
            return self.judged.prompt
        reminders = self.judged.form.reminders
        return f"{self.judged.prompt}\n\n{reminders[min(self.unread, len(reminders)) - 1]}"


def filled_in(judge_prompt: str, question: str, answer: str) -> str:
    """Fill question and answer into a rubric, each as it is: braces in them are not fields.

    Args:
        judge_prompt: The rubric, with ``{question}`` and ``{answer}``.
        question: The question.
        answer: The response to it.

    Example:
        >>> filled_in("Q: {question} A: {answer}", "What is {answer}?", "A {question}.")
        'Q: What is {answer}? A: A {question}.'
    """
    texts = {"question": question, "answer": answer}
    return _FIELDS.sub(lambda found: texts[found[1]], judge_prompt)
