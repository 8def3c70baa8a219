"""From given conversations to work units: the same conversations give the same units. Pure.

A unit is a run of conversations of one persona, polarity and prompt, in address order; none is ever cut in two, because
its turns share one forward pass.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from .catalog import Catalog
from .errors import InputError
from .given import Conversation
from .personas import Persona
from .plan import BLOCK_BYTES_LIMIT, STORED_BYTES_PER_VALUE, ModelFacts, Plan, captured_layers
from .spec import JobSpec, digest_of
from .units import ConversationUnit, RolloutAddress, RolloutRequest, WorkUnit

ROWS_PER_UNIT = 256
"""What a unit holds where its size would allow for more: a stop loses that much at most."""


@dataclass(frozen=True)
class GivenPlan(Plan):
    """A plan whose texts are given.

    Attributes:
        conversations: All of them, by conversation_index.
    """

    conversations: tuple[Conversation, ...]

    def requests(self, unit: WorkUnit) -> tuple[RolloutRequest, ...]:
        """Give a unit's rollouts with the conversations they are turns of, in row order."""
        return tuple(
            RolloutRequest(
                address=_address(given, turn),
                system_prompt=given.system_prompt,
                question=given.question_before(turn),
                seed=0,
                given=given,
            )
            for given in self.conversations_of(unit)
            for turn in given.turn_indices()
        )

    def conversations_of(self, unit: WorkUnit) -> tuple[Conversation, ...]:
        """Give a unit's conversations, in order."""
        assert isinstance(unit, ConversationUnit)
        return tuple(self.conversations[index] for index in unit.conversation_indices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the identity of the spec, the model and every text that is read."""
        head = digest_of([self.spec.identity(), self.facts.fingerprint, self.rows_per_block])
        digest = hashlib.sha256(head.encode())
        for unit in self.units:
            for given in self.conversations_of(unit):
                said = [[message.role, message.content, message.extra] for message in given.messages]
                digest.update(json.dumps([unit.unit_id, given.system_prompt, said, given.extra]).encode())
        return digest.hexdigest()


def _address(given: Conversation, turn_index: int) -> RolloutAddress:
    return RolloutAddress(
        given.kind,
        given.persona,
        given.polarity,
        given.prompt_index,
        given.question_index,
        given.sample_index,
        turn_index,
    )


def make_given_plan(spec: JobSpec, conversations: Sequence[Conversation], facts: ModelFacts) -> GivenPlan:
    """Cut conversations into units.

    Args:
        spec: What to run.
        conversations: By conversation_index.
        facts: Of the model that reads them.

    Raises:
        InputError: A layer that the model lacks, or a conversation of more turns than a unit can hold.
    """
    layers = captured_layers(spec, facts)
    most_rows = BLOCK_BYTES_LIMIT // (len(layers) * facts.d_model * STORED_BYTES_PER_VALUE)
    for given in conversations:
        if given.num_turns > most_rows:
            raise InputError(
                f"has {given.num_turns} messages of the assistant; a unit of 64 MiB holds {most_rows} ({given.place}).",
                code="too_many",
                field="messages",
                mend="Cut the conversation in two, or capture fewer layers.",
            )
    names: dict[str, tuple[str, str]] = {}
    units: list[WorkUnit] = []
    ordered = sorted(conversations, key=lambda given: _address(given, 0))
    groups = itertools.groupby(ordered, key=lambda g: (g.kind, g.persona, g.polarity, g.prompt_index))
    for (kind, persona, polarity, prompt), group in groups:
        name = _file_name(kind, persona, names)
        for number, block in enumerate(_blocks(list(group), min(ROWS_PER_UNIT, most_rows))):
            units.append(
                ConversationUnit(
                    unit_id=f"{kind}.{name}.{polarity}.p{prompt}.b{number}",
                    kind=kind,
                    persona=persona,
                    polarity=polarity,
                    prompt_index=prompt,
                    question_indices=tuple(given.question_index for given in block),
                    samples=1,
                    sample_indices=tuple(given.sample_index for given in block),
                    conversation_indices=tuple(given.conversation_index for given in block),
                    turn_indices=tuple(tuple(given.turn_indices()) for given in block),
                )
            )
    widest = max(unit.num_rollouts for unit in units)
    nobody = Catalog("", {}, (), _nobody)
    return GivenPlan(spec, nobody, facts, layers, tuple(units), widest, tuple(conversations))


def _nobody(*_: object) -> Persona:
    raise AssertionError("given conversations need no catalog")


def _file_name(kind: str, persona: str, taken: dict[str, tuple[str, str]]) -> str:
    """Make a name for objects of a store out of whatever a user's file is called; each persona's is its own."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", persona)[:80]
    name, number = plain, 2
    while taken.setdefault(f"{kind}.{name}".lower(), (kind, persona)) != (kind, persona):
        name, number = f"{plain}_{number}", number + 1
    return name


def _blocks(conversations: Sequence[Conversation], rows: int) -> Iterator[list[Conversation]]:
    """Cut conversations into blocks of at most so many turns, or of one conversation that has more."""
    block: list[Conversation] = []
    taken = 0
    for given in conversations:
        if block and taken + given.num_turns > rows:
            yield block
            block, taken = [], 0
        block.append(given)
        taken += given.num_turns
    if block:
        yield block
