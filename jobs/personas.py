"""Personas and their questions, as frozen values. Knows nothing of files, nor of how many rollouts will be made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["role", "trait", "default", "conversation"]
"""Kind of a rollout. Catalogs have the first three; ``conversation`` is a given text that belongs to no persona."""

Polarity = Literal["pos", "neg"]

KINDS: tuple[Kind, ...] = ("default", "role", "trait")
POLARITIES: dict[Kind, tuple[Polarity, ...]] = {"default": ("pos",), "role": ("pos",), "trait": ("pos", "neg")}
DEFAULT_PERSONA = "assistant_default"
"""Name of the only persona of kind ``default``, the model without a role. (``assistant`` is the name of a role.)"""


@dataclass(frozen=True, slots=True)
class Question:
    """One extraction question. A text that is listed twice is two questions with two ids.

    Attributes:
        id: Id of the question, unique within its list.
        text: What the user asks.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Persona:
    """A role, a trait or the default Assistant.

    Kind and name together identify it: some names are those of both a role and a trait.

    Attributes:
        kind: ``role``, ``trait`` or ``default``.
        name: Name within the kind.
        description: Description in one line; empty if the source has none.
        prompts: System prompts by prompt_index, for a trait those of polarity ``pos``; ``""`` means no system prompt.
        counter_prompts: System prompts of polarity ``neg`` by prompt_index; empty unless it is a trait.
        questions: Questions of its own; empty if it has only the shared ones.
        judge_prompt: Prompt for a judge, with ``{question}`` and ``{answer}``; empty if there is none.
    """

    kind: Kind
    name: str
    description: str
    prompts: tuple[str, ...]
    counter_prompts: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    judge_prompt: str = ""

    def system_prompt(self, polarity: Polarity, prompt_index: int, model_name: str) -> str:
        """Return a system prompt with ``{model_name}`` filled in.

        Args:
            polarity: ``neg`` exists for traits only.
            prompt_index: 0-based.
            model_name: Name that the prompt calls the model.

        Returns:
            The prompt; empty for no system prompt.

        Example:
            >>> Persona("default", "assistant_default", "", ("You are {model_name}.",)).system_prompt("pos", 0, "Llama")
            'You are Llama.'
        """
        texts = self.prompts if polarity == "pos" else self.counter_prompts
        return texts[prompt_index].replace("{model_name}", model_name)
