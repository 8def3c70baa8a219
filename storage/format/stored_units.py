"""A work unit as records and Parquet files hold it. What is written here never changes; ``WorkUnit`` may.

A unit of single questions is stored as its questions and how often each is asked, one of conversations as a line for
each conversation with the list of its turns. In memory both are columns with an entry for each row.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, core_schema

from ...jobs.personas import Kind, Polarity
from ...jobs.units import WorkUnit, question_columns


class StoredUnit(BaseModel):
    """A unit of single questions as it is stored.

    Attributes:
        unit_id: Readable and unique in the run.
        kind: What the persona is; ``conversation`` for a text of no persona.
        persona: Name of the persona, or of the file.
        polarity: ``neg`` for a trait's opposite.
        prompt_index: Which of the persona's system prompts; 0 where that is not known.
        question_indices: The questions, ascending, each once; of conversations one entry for each.
        samples: Rollouts of each question; of conversations 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit_id: str
    kind: Kind
    persona: str
    polarity: Polarity
    prompt_index: int
    question_indices: tuple[int, ...]
    samples: int

    def to_unit(self) -> WorkUnit:
        """Return the unit in memory.

        Raises:
            ValueError: It has no rows, or its lists do not fit together.
        """
        return WorkUnit(*self._design(), *question_columns(self.question_indices, self.samples))

    def _design(self) -> tuple[str, Kind, str, Polarity, int]:
        return self.unit_id, self.kind, self.persona, self.polarity, self.prompt_index


class StoredConversationUnit(StoredUnit):
    """A unit of conversations as it is stored; each list has one entry for each conversation.

    Attributes:
        sample_indices: Tell conversations of the same question apart.
        conversation_indices: Places in the whole input.
        turn_indices: The places of each conversation's responses among its messages, ascending.
    """

    sample_indices: tuple[int, ...]
    conversation_indices: tuple[int, ...]
    turn_indices: tuple[tuple[int, ...], ...]

    def to_unit(self) -> WorkUnit:
        """Return the unit in memory; see :meth:`StoredUnit.to_unit`."""
        columns = (self.question_indices, self.sample_indices, self.conversation_indices, self.turn_indices)
        rows = [
            (question, sample, turn, conversation)
            for question, sample, conversation, turns in zip(*columns, strict=True)
            for turn in turns
        ]
        questions, samples, turns, conversations = zip(*rows, strict=True)
        return WorkUnit(*self._design(), questions, samples, turns, conversations)


def stored_unit(unit: WorkUnit) -> StoredUnit:
    """Return the form in which a unit is stored.

    Raises:
        ValueError: It has no such form: its questions are not all asked equally often, or its turns belong to no
            numbered conversation.
    """
    design: dict[str, Any] = {
        "unit_id": unit.unit_id,
        "kind": unit.kind,
        "persona": unit.persona,
        "polarity": unit.polarity,
        "prompt_index": unit.prompt_index,
    }
    if unit.turn_indices is None and unit.conversation_indices is None:
        questions, samples = _questions_and_samples(unit.question_indices, unit.sample_indices)
        return StoredUnit(**design, question_indices=questions, samples=samples)
    if unit.turn_indices is None or unit.conversation_indices is None:
        raise ValueError(f"{unit.unit_id} has turns without conversations, or conversations without turns")
    columns = (unit.conversation_indices, unit.question_indices, unit.sample_indices)
    rows = zip(zip(*columns, strict=True), unit.turn_indices, strict=True)
    lines = [(*line, tuple(turn for _, turn in group)) for line, group in groupby(rows, key=lambda row: row[0])]
    conversations, questions, samples, turns = zip(*lines, strict=True)
    return StoredConversationUnit(
        **design,
        question_indices=questions,
        samples=1,
        sample_indices=samples,
        conversation_indices=conversations,
        turn_indices=turns,
    )


@lru_cache(maxsize=4096)
def _questions_and_samples(questions: tuple[int, ...], samples: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Turn the columns of a unit of single questions back into what ``question_columns`` makes them of."""
    distinct = tuple(dict.fromkeys(questions))
    each = len(questions) // len(distinct)
    if question_columns(distinct, each) != (questions, samples):
        raise ValueError("the rows are not a number of questions, each asked as often as the others")
    return distinct, each


class _AsStored:
    """Has pydantic read and write a ``WorkUnit`` in its stored form."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any, read_stored: ValidatorFunctionWrapHandler) -> WorkUnit:
            return value if isinstance(value, WorkUnit) else read_stored(value).to_unit()

        # Which of the two it is, its fields tell: that of conversations has three more.
        either = core_schema.union_schema(
            [handler.generate_schema(StoredConversationUnit), handler.generate_schema(StoredUnit)],
            mode="left_to_right",
        )
        return core_schema.no_info_wrap_validator_function(
            read, either, serialization=core_schema.plain_serializer_function_ser_schema(stored_unit)
        )


UnitField = Annotated[WorkUnit, _AsStored()]
"""A field of a record that holds a unit, in its stored form when written."""
