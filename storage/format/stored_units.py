"""The stored form of a work unit, in records and Parquet files. It must not change, whereas ``WorkUnit`` may.

A unit of single questions is stored as its questions and the samples of each; a unit of conversations as
lists with one entry per conversation, turns included. In memory both have columns with one entry per row.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import CoreSchema, core_schema

from ...jobs.personas import Kind, Polarity
from ...jobs.work.units import WorkUnit, question_columns


class StoredUnit(BaseModel):
    """A unit of single questions as it is stored.

    Attributes:
        unit_id: Readable id, unique in the run.
        kind: Kind of the persona; ``conversation`` for given texts without one.
        persona: Name of the persona, or of the file of given texts.
        polarity: ``neg`` for the opposite of a trait.
        prompt_index: Index of the persona's system prompt; 0 if unknown.
        question_indices: The questions, ascending, each once; for conversations one entry per conversation.
        samples: Number of rollouts per question; 1 for conversations.
        first_sample: Sample index of the first of them; 0, and not stored, but for samples that were added later.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit_id: str
    kind: Kind
    persona: str
    polarity: Polarity
    prompt_index: int
    question_indices: tuple[int, ...]
    samples: int
    first_sample: int = 0

    @model_serializer(mode="wrap")
    def _without_the_usual_first_sample(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Units have the bytes that they had before the field existed.
        fields = write(self)
        if self.first_sample == 0:
            del fields["first_sample"]
        return fields

    def to_unit(self) -> WorkUnit:
        """Convert to a ``WorkUnit``.

        Raises:
            ValueError: It has no rows, or its lists do not fit together.
        """
        return WorkUnit(*self._design(), *question_columns(self.question_indices, self.samples, self.first_sample))

    def _design(self) -> tuple[str, Kind, str, Polarity, int]:
        return self.unit_id, self.kind, self.persona, self.polarity, self.prompt_index


class StoredConversationUnit(StoredUnit):
    """A unit of conversations as it is stored; each list has one entry per conversation.

    Attributes:
        sample_indices: Sample index of each conversation, which distinguishes conversations of the same question.
        conversation_indices: Index of each conversation in the whole input.
        turn_indices: Indices of each conversation's responses among its messages, ascending.
    """

    sample_indices: tuple[int, ...]
    conversation_indices: tuple[int, ...]
    turn_indices: tuple[tuple[int, ...], ...]

    def to_unit(self) -> WorkUnit:
        """Convert to a ``WorkUnit``; see :meth:`StoredUnit.to_unit`."""
        columns = (self.question_indices, self.sample_indices, self.conversation_indices, self.turn_indices)
        rows = [
            (question, sample, turn, conversation)
            for question, sample, conversation, turns in zip(*columns, strict=True)
            for turn in turns
        ]
        questions, samples, turns, conversations = zip(*rows, strict=True)
        return WorkUnit(*self._design(), questions, samples, turns, conversations)


def stored_unit(unit: WorkUnit) -> StoredUnit:
    """Convert a ``WorkUnit`` to its stored form.

    Raises:
        ValueError: The unit has no stored form: its questions have different numbers of samples, or it has turns
            without conversation indices.
    """
    design: dict[str, Any] = {
        "unit_id": unit.unit_id,
        "kind": unit.kind,
        "persona": unit.persona,
        "polarity": unit.polarity,
        "prompt_index": unit.prompt_index,
    }
    if unit.turn_indices is None and unit.conversation_indices is None:
        questions, samples, first_sample = _questions_and_samples(unit.question_indices, unit.sample_indices)
        return StoredUnit(**design, question_indices=questions, samples=samples, first_sample=first_sample)
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
def _questions_and_samples(questions: tuple[int, ...], samples: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """Recover questions, samples and the first sample from the columns that ``question_columns`` makes of them."""
    distinct = tuple(dict.fromkeys(questions))
    each, first = len(questions) // len(distinct), samples[0]
    if question_columns(distinct, each, first) != (questions, samples):
        raise ValueError("the rows are not questions with the same samples each")
    return distinct, each, first


class _AsStored:
    """Makes pydantic read and write a ``WorkUnit`` in its stored form."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any, read_stored: ValidatorFunctionWrapHandler) -> WorkUnit:
            return value if isinstance(value, WorkUnit) else read_stored(value).to_unit()

        # The fields distinguish the two: that of conversations has three more, and extra fields are forbidden.
        either = core_schema.union_schema(
            [handler.generate_schema(StoredConversationUnit), handler.generate_schema(StoredUnit)],
            mode="left_to_right",
        )
        return core_schema.no_info_wrap_validator_function(
            read, either, serialization=core_schema.plain_serializer_function_ser_schema(stored_unit)
        )


UnitField = Annotated[WorkUnit, _AsStored()]
"""A field of a record that holds a unit, in its stored form when written."""
