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
from dataclasses import dataclass, replace
from functools import cached_property

from ..catalog import Catalog
from ..errors import InputError
from ..personas import Persona
from ..plan import ModelFacts, Plan, captured_layers
from ..spec import JobSpec, digest_of
from ..unit_size import BLOCK_BYTES_LIMIT, RowSizes, whole_chunks
from ..units import ConversationUnit, GivenTexts, RolloutAddress, UnitTexts, WorkUnit
from .conversation import Conversation

ROWS_PER_UNIT = 256
"""What a unit holds where its size would allow for more: a stop loses that much at most."""

BYTES_PER_TOKEN = 3
"""Of UTF-8, for sizing where no tokenizer is at hand: English has four and more, code and Chinese about three."""


@dataclass(frozen=True)
class GivenPlan(Plan):
    """A plan whose texts are given.

    Attributes:
        conversations: All of them, by conversation_index.
    """

    conversations: tuple[Conversation, ...]

    def texts(self, unit: WorkUnit) -> UnitTexts:
        """Give the conversations of a unit."""
        return GivenTexts(self.conversations_of(unit))

    def conversations_of(self, unit: WorkUnit) -> tuple[Conversation, ...]:
        """Give a unit's conversations, in order."""
        assert isinstance(unit, ConversationUnit)
        return tuple(self.conversations[index] for index in unit.conversation_indices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the identity of the spec, the model and every text that is read."""
        digest = hashlib.sha256(digest_of(self.identity()).encode())
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
        InputError: A layer that the model lacks, or a conversation of more turns or tokens than a unit can hold.
    """
    layers, token_layers = captured_layers(spec, facts)
    sizes = RowSizes.of(spec, facts.d_model, len(layers), len(token_layers))
    for given in conversations:
        _refuse_too_long(given, sizes, facts)
    names: dict[str, tuple[str, str]] = {}
    units: list[WorkUnit] = []
    ordered = sorted(conversations, key=lambda given: _address(given, 0))
    groups = itertools.groupby(ordered, key=lambda g: (g.kind, g.persona, g.polarity, g.prompt_index))
    for (kind, persona, polarity, prompt), group in groups:
        name = _file_name(kind, persona, names)
        for number, block in enumerate(_blocks(list(group), sizes, facts)):
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
    plan = GivenPlan(spec, nobody, facts, layers, token_layers, tuple(units), widest, 0, tuple(conversations))
    if not token_layers:
        return plan
    # Room that a unit leaves empty takes no space.
    most = max(sum(_most_tokens(given, facts) for given in plan.conversations_of(unit)) for unit in units)
    return replace(plan, tokens_per_block=whole_chunks(most))


def _nobody(*_: object) -> Persona:
    raise AssertionError("given conversations need no catalog")


def _file_name(kind: str, persona: str, taken: dict[str, tuple[str, str]]) -> str:
    """Make a name for objects of a store out of whatever a user's file is called; each persona's is its own."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", persona)[:80]
    name, number = plain, 2
    while taken.setdefault(f"{kind}.{name}".lower(), (kind, persona)) != (kind, persona):
        name, number = f"{plain}_{number}", number + 1
    return name


def _blocks(conversations: Sequence[Conversation], sizes: RowSizes, facts: ModelFacts) -> Iterator[list[Conversation]]:
    """Cut conversations into blocks that a unit holds, or of one conversation that has more turns than most units."""
    most_rows = min(ROWS_PER_UNIT, sizes.most_rollouts)
    block: list[Conversation] = []
    rows = tokens = 0
    for given in conversations:
        more = _about_tokens(given, facts)
        if block and (rows + given.num_turns > most_rows or tokens + more > sizes.most_tokens):
            yield block
            block, rows, tokens = [], 0, 0
        block.append(given)
        rows, tokens = rows + given.num_turns, tokens + more
    if block:
        yield block


def _refuse_too_long(given: Conversation, sizes: RowSizes, facts: ModelFacts) -> None:
    """A conversation is never cut: its turns share one pass and one unit."""
    if given.num_turns > sizes.most_rollouts:
        raise InputError(
            f"has {given.num_turns} messages of the assistant; a unit of {BLOCK_BYTES_LIMIT // 2**20} MiB holds "
            f"{sizes.most_rollouts} ({given.place}).",
            code="too_many",
            field="messages",
            hint="Cut the conversation in two, or capture fewer layers.",
        )
    tokens = _about_tokens(given, facts)
    if tokens > sizes.most_tokens:
        raise sizes.refuse_tokens(tokens, f"the assistant's messages in {given.place}", "cut the conversation")


def _about_tokens(given: Conversation, facts: ModelFacts) -> int:
    """Tokens of a conversation's responses, about; what is longer than the context is refused when it is read."""
    return min(-(-_most_tokens(given, facts) // BYTES_PER_TOKEN), facts.max_context)


def _most_tokens(given: Conversation, facts: ModelFacts) -> int:
    """No text has more tokens than bytes; at each end of a response a token of the template's may count to it."""
    said = sum(len(message.content.encode()) + 2 for message in given.messages if message.role == "assistant")
    return min(said, facts.max_context)
