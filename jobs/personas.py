"""Personas and their questions, as frozen values. Knows nothing of files or of how many will be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["role", "trait", "default", "conversation"]
"""What a rollout is of; a catalog has the first three, ``conversation`` is a text that was given."""

Polarity = Literal["pos", "neg"]

KINDS: tuple[Kind, ...] = ("default", "role", "trait")
POLARITIES: dict[Kind, tuple[Polarity, ...]] = {"default": ("pos",), "role": ("pos",), "trait": ("pos", "neg")}
DEFAULT_PERSONA = "assistant_default"
"""Name of the one persona of kind ``default``: the model as itself. (``assistant`` is also the name of a role.)"""


@dataclass(frozen=True, slots=True)
class Question:
    """One extraction question; a text listed twice stays two questions with two ids."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Persona:
    """A role, a trait or the default Assistant. Kind and name together are its identity: nine names are both.

    Attributes:
        kind: ``role``, ``trait`` or ``default``.
        name: Its name within the kind.
        description: One line, empty where the source has none.
        prompts: System prompts, by prompt_index; for a trait those that ask for it. ``""`` means no system prompt.
        counter_prompts: For a trait, the prompts that ask for its opposite, matched by index; else empty.
        questions: Its own questions; empty means it has none beside the shared ones.
        judge_prompt: What a judge is asked, with ``{question}`` and ``{answer}``; empty for the default.
    """

    kind: Kind
    name: str
    description: str
    prompts: tuple[str, ...]
    counter_prompts: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    judge_prompt: str = ""

    def system_prompt(self, polarity: Polarity, prompt_index: int, model_name: str) -> str:
        """Give the system prompt of one polarity and index, ``{model_name}`` filled in (``""``: none)."""
        texts = self.prompts if polarity == "pos" else self.counter_prompts
        return texts[prompt_index].replace("{model_name}", model_name)
