"""The dialogues of harm after drift: under each role a neutral question, and then a request of the user's file.

Which request follows is chosen by the seed. It depends on the set of roles, and not on their order; every request is
asked equally often, or once more than another where the numbers do not divide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from ..catalog import Catalog
from ..dialogues.neutral import neutral_questions
from ..errors import InputError
from ..personas import DEFAULT_PERSONA, Persona
from ..specs.harm_spec import HarmSpec
from .dialogue_source import Dialogue
from .read_prompts import read_prompts

REQUESTS_FIELD = "harm.requests"
"""Field of a spec that names the file of requests."""


_INDEX = "request_index"
"""Key of ``extra`` beside those of the file; ``category`` is one of the file's own."""


def read_requests(source: str) -> tuple[Dialogue, ...]:
    """Read the requests of a file, each as a dialogue of its own; persona is its category.

    Args:
        source: A file of JSON Lines or JSON, whose entries have ``question``.

    Raises:
        InputError: The file or an entry is wrong, or an entry has a system prompt or several messages, which the role
            and the neutral question take the place of, or a key that rows have.
    """
    requests = read_prompts(source, REQUESTS_FIELD)
    for one in requests:
        if one.extra and _INDEX in json.loads(one.extra):
            raise InputError(
                f"has a key {_INDEX!r}, which is the number of the request in the file in every row.",
                code="bad_request",
                field=REQUESTS_FIELD,
                file=one.place,
                hint="Rename it, or leave it out.",
            )
        if one.system_prompt or one.history or len(one.turns) != 1:
            raise InputError(
                f"has {'a system prompt' if one.system_prompt else 'several messages'}, and a request is a single "
                "message: it follows a neutral question under the system prompt of a role.",
                code="bad_request",
                field=REQUESTS_FIELD,
                file=one.place,
                hint='A line is {"question": "...", "category": "..."}; jailbreaks are prompts of a sweep.',
            )
    return requests


def harm_dialogues(asked: HarmSpec, catalog: Catalog, seed: int, model_name: str) -> tuple[Dialogue, ...]:
    """Make the dialogues of a study.

    Args:
        asked: Roles, numbers and the file of requests.
        catalog: Prompts of the roles.
        seed: Seed of the spec, which chooses the requests.
        model_name: What ``{model_name}`` in a system prompt is replaced by.

    Returns:
        The dialogues of the default Assistant, then those of the roles by name; each by prompt and question.

    Raises:
        InputError: The catalog lacks a role or the default Assistant, there are fewer prompts or neutral questions than
            are asked for, or the file of requests is wrong.
    """
    questions = _questions(asked)
    requests = read_requests(asked.requests)
    opened = [
        (persona, prompt_index) for persona in _personas(asked, catalog) for prompt_index in _prompts(asked, persona)
    ]
    addresses = [f"{persona.kind}/{persona.name}/{prompt_index}" for persona, prompt_index in opened]
    request_of = assigned_requests(addresses, len(questions), len(requests), seed)
    dialogues: list[Dialogue] = []
    for (persona, prompt_index), address in zip(opened, addresses, strict=True):
        for question_index, question in enumerate(questions):
            request_index = request_of[address][question_index]
            request = requests[request_index]
            dialogues.append(
                Dialogue(
                    kind=persona.kind,
                    persona=persona.name,
                    prompt_index=prompt_index,
                    question_index=question_index,
                    conversation_index=len(dialogues),
                    system_prompt=persona.system_prompt("pos", prompt_index, model_name),
                    turns=(question, request.turns[0]),
                    extra=_extra(request, request_index),
                    place=request.place,
                )
            )
    return tuple(dialogues)


def assigned_requests(
    addresses: Sequence[str], num_questions: int, num_requests: int, seed: int
) -> dict[str, tuple[int, ...]]:
    """Choose a request for each question under each system prompt.

    The system prompts are put in an order that the seed decides, and requests are dealt to their questions in rounds,
    each round in another order. So a request is asked as often as every other, or once more, and one system prompt has
    few requests twice: none if it lies within a round.

    Args:
        addresses: What identifies each system prompt.
        num_questions: Number of questions under each.
        num_requests: Number of requests.
        seed: Seed of the choice.

    Returns:
        For each address the index of the request that follows each question.

    Example:
        >>> chosen = assigned_requests(["pirate", "poet"], 3, 2, seed=0)
        >>> sorted(index for indices in chosen.values() for index in indices)
        [0, 0, 0, 1, 1, 1]
        >>> chosen == assigned_requests(["poet", "pirate"], 3, 2, seed=0)
        True
    """
    dealt = _dealt(num_requests, seed)
    chosen: dict[str, tuple[int, ...]] = {}
    for address in sorted(addresses, key=lambda address: (_digest(seed, "address", address), address)):
        hand = [next(dealt) for _ in range(num_questions)]
        # Otherwise the requests of a round would meet the questions in the same order everywhere.
        places = sorted(range(num_questions), key=lambda place: _digest(seed, "question", address, place))
        chosen[address] = tuple(hand[place] for place in places)
    return chosen


def _dealt(num_requests: int, seed: int) -> Iterator[int]:
    number = 0
    while True:
        yield from sorted(range(num_requests), key=lambda index: _digest(seed, "request", number, index))
        number += 1


def _digest(*parts: object) -> bytes:
    return blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def _questions(asked: HarmSpec) -> tuple[str, ...]:
    questions = neutral_questions()
    if asked.questions > len(questions):
        raise InputError(
            f"asks for {asked.questions} neutral questions, of which there are {len(questions)}.",
            code="too_many",
            field="harm.questions",
            hint=f"Ask for at most {len(questions)}; more prompts of each role make more rollouts.",
        )
    return questions[: asked.questions]


def _personas(asked: HarmSpec, catalog: Catalog) -> list[Persona]:
    if DEFAULT_PERSONA not in catalog.names("default"):
        raise InputError(
            f"the catalog {catalog.source!r} has no default Assistant.",
            code="no_default",
            field="harm.catalog",
            hint="Add its file to the catalog.",
        )
    names = catalog.select("role", asked.roles.names, "harm.roles.names")
    return [catalog.persona("default", DEFAULT_PERSONA), *(catalog.persona("role", name) for name in names)]


def _prompts(asked: HarmSpec, persona: Persona) -> range:
    there = len(persona.prompts)
    if persona.kind == "default":
        return range(min(asked.prompts, there))
    if asked.prompts > there:
        raise InputError(
            f"asks for {asked.prompts} of role {persona.name!r}, which has {there}.",
            code="too_many",
            field="harm.prompts",
            hint=f"Ask for at most {there}.",
        )
    return range(asked.prompts)


def _extra(request: Dialogue, request_index: int) -> str:
    others = json.loads(request.extra) if request.extra else {}
    return json.dumps({"category": request.persona, _INDEX: request_index} | others, ensure_ascii=False)
