"""The dialogues of a drift study: a simulated user for every topic that a spec selects. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from ..dialogues.simulated_user import SimulatedUser, instructions
from ..dialogues.topics import DomainTopics, UserPersona
from ..errors import InputError
from ..specs.drift_spec import DriftSpec
from .dialogue_source import Dialogue


def drift_dialogues(catalog: Sequence[DomainTopics], asked: DriftSpec) -> tuple[Dialogue, ...]:
    """Make the dialogues of a study, domain by domain.

    Args:
        catalog: The domains that there are.
        asked: Which of them, and how many conversations of each.

    Returns:
        Dialogues of kind ``conversation``: persona the domain, prompt_index the person, question_index the topic.

    Raises:
        InputError: A domain is unknown, or has fewer topics than are asked for.
    """
    known = {domain.name: domain for domain in catalog}
    names = asked.domains or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"names {unknown[0]!r}, which is no domain of {asked.conversations}.",
            code="no_such_domain",
            field="drift.domains",
            hint=f"Choose among {', '.join(known)}.",
        )
    made: list[Dialogue] = []
    for name in names:
        for prompt, topic, persona in _chosen(known[name], asked.per_domain):
            labels = {"domain": name, "user_persona": persona.name, "topic": persona.topics[topic]}
            user = SimulatedUser(instructions(persona, persona.topics[topic]), asked.exchanges)
            made.append(
                Dialogue(
                    kind="conversation",
                    persona=name,
                    prompt_index=prompt,
                    question_index=topic,
                    conversation_index=len(made),
                    system_prompt="",
                    user=user,
                    extra=json.dumps(labels, sort_keys=True),
                )
            )
    return tuple(made)


def _chosen(domain: DomainTopics, number: int | None) -> list[tuple[int, int, UserPersona]]:
    """Choose topics of a domain, the first of each person before the second of any; in the order of persons."""
    every = list(_topics_in_turn(domain))
    if number is not None and number > len(every):
        raise InputError(
            f"asks for {number} of the domain {domain.name!r}, which has {len(every)} topics.",
            code="too_many",
            field="drift.per_domain",
            hint=f"Ask for at most {len(every)}.",
        )
    return sorted(every[:number], key=lambda one: one[:2])


def _topics_in_turn(domain: DomainTopics) -> Iterator[tuple[int, int, UserPersona]]:
    for topic in range(max(len(persona.topics) for persona in domain.personas)):
        for prompt, persona in enumerate(domain.personas):
            if topic < len(persona.topics):
                yield prompt, topic, persona
