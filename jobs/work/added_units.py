"""Units of the rollouts that a larger plan has and earlier units have not. Pure: counts rows, knows no texts.

An added unit fits into a row block of the run as it was begun. Its rollouts keep the addresses, hence the seeds, that
they have in a plan of everything at once; its id has the number of the addition, so that no two units share one.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..personas import Kind, Polarity
from ..wording import count_of
from .addresses import RolloutAddress
from .units import WorkUnit

Row = tuple[int, int, int | None, int | None]
"""Question, sample, turn and conversation of a row."""

Design = tuple[Kind, str, Polarity, int]
"""Kind, persona, polarity and prompt: what the rows of a unit share."""


@dataclass(frozen=True, slots=True)
class BlockRoom:
    """What an added unit may hold at most, because the arrays of the run are there already.

    Attributes:
        rows: Rows of a row block.
        tokens: Content tokens of a row block in ``tokens`` arrays; None where no tokens are kept.
        tokens_of: Returns the most content tokens that the responses of a unit may have.
    """

    rows: int
    tokens: int | None
    tokens_of: Callable[[WorkUnit], int]


def first_left_out(planned: Iterable[WorkUnit], asked: Iterable[WorkUnit]) -> RolloutAddress | None:
    """Return the first rollout of a run that a plan leaves out or has at another place of its input; None without one.

    Args:
        planned: Units of the run.
        asked: Units of the plan.
    """
    known = _rows_by_design(asked)
    for unit in planned:
        rows = known.get(_design(unit), frozenset())
        for address, row in zip(unit.addresses(), _rows(unit), strict=True):
            if row not in rows:
                return address
    return None


def units_to_add(
    planned: Iterable[WorkUnit], asked: Iterable[WorkUnit], number: int, room: BlockRoom
) -> tuple[WorkUnit, ...]:
    """Make units of the rollouts that are asked and not planned yet, in the order in which they are asked.

    Args:
        planned: Units of the run.
        asked: Units of the larger plan, all rollouts of the run included.
        number: Number of the addition, from 1.
        room: What a unit may hold.

    Returns:
        The units; none where everything is planned already.

    Raises:
        InputError: A conversation, which cannot be divided, does not fit into a row block of the run.
    """
    known = _rows_by_design(planned)
    missing: dict[Design, list[Row]] = {}
    prefixes: dict[Design, str] = {}
    for unit in asked:
        design = _design(unit)
        rows = [row for row in _rows(unit) if row not in known.get(design, frozenset())]
        if rows:
            missing.setdefault(design, []).extend(rows)
            prefixes.setdefault(design, unit.unit_id.rpartition(".")[0])
    added: list[WorkUnit] = []
    for design, rows in missing.items():
        is_given = rows[0][3] is not None
        prefix = f"{prefixes[design]}.a{number}"
        added += (_of_conversations if is_given else _of_questions)(prefix, design, rows, room)
    return tuple(added)


def _of_questions(prefix: str, design: Design, rows: Sequence[Row], room: BlockRoom) -> Iterator[WorkUnit]:
    """Divide single responses: questions that lack the same samples go together."""
    samples_of: dict[int, list[int]] = defaultdict(list)
    for question, sample, _, _ in rows:
        samples_of[question].append(sample)
    questions_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for question, samples in samples_of.items():
        # A whole number of pieces where one question has more samples than a row block has rows.
        for some in _parts(tuple(samples), room.rows):
            questions_of[some].append(question)
    number = itertools.count()
    for samples, questions in questions_of.items():
        if samples[-1] - samples[0] + 1 != len(samples):
            raise ValueError(f"{prefix} lacks samples {samples}, which do not follow one another")
        for batch in _parts(tuple(questions), max(1, room.rows // len(samples))):
            yield WorkUnit.of_questions(f"{prefix}.b{next(number)}", *design, batch, len(samples), samples[0])


def _of_conversations(prefix: str, design: Design, rows: Sequence[Row], room: BlockRoom) -> Iterator[WorkUnit]:
    """Divide given conversations, each of which stays whole."""
    number = itertools.count()
    batch: list[Row] = []
    held = 0
    for _, turns in itertools.groupby(rows, key=lambda row: row[3]):
        whole = list(turns)
        tokens = room.tokens_of(_given("", design, whole)) if room.tokens is not None else 0
        if len(whole) > room.rows or (room.tokens is not None and tokens > room.tokens):
            raise _refused(whole, tokens, room)
        is_full = len(batch) + len(whole) > room.rows or (room.tokens is not None and held + tokens > room.tokens)
        if batch and is_full:
            yield _given(f"{prefix}.b{next(number)}", design, batch)
            batch, held = [], 0
        batch, held = batch + whole, held + tokens
    yield _given(f"{prefix}.b{next(number)}", design, batch)


def _refused(rows: Sequence[Row], tokens: int, room: BlockRoom) -> InputError:
    what = f"{count_of(len(rows), 'message')} of the assistant, and a row block of this run holds {room.rows}"
    if len(rows) <= room.rows:
        what = f"up to {tokens:,} tokens in its responses, and a row block of this run holds {room.tokens:,}"
    return InputError(
        f"conversation {rows[0][3]} has {what}.",
        code="cannot_grow",
        field="conversations.source",
        hint="Cut the conversation in two, or give this job its own store.url.",
    )


def _given(unit_id: str, design: Design, rows: Sequence[Row]) -> WorkUnit:
    questions, samples, turns, conversations = zip(*rows, strict=True)
    return WorkUnit(unit_id, *design, questions, samples, turns, conversations)


def _parts(things: tuple[int, ...], most: int) -> Iterator[tuple[int, ...]]:
    """Divide into the fewest parts of nearly equal length, none longer than ``most``."""
    count = math.ceil(len(things) / most)
    edges = [round(place * len(things) / count) for place in range(count + 1)]
    for start, stop in itertools.pairwise(edges):
        yield things[start:stop]


def _rows_by_design(units: Iterable[WorkUnit]) -> dict[Design, set[Row]]:
    rows: dict[Design, set[Row]] = defaultdict(set)
    for unit in units:
        rows[_design(unit)].update(_rows(unit))
    return rows


def _rows(unit: WorkUnit) -> Iterator[Row]:
    nothing = (None,) * unit.num_rollouts
    turns, conversations = unit.turn_indices or nothing, unit.conversation_indices or nothing
    return zip(unit.question_indices, unit.sample_indices, turns, conversations, strict=True)


def _design(unit: WorkUnit) -> Design:
    return unit.kind, unit.persona, unit.polarity, unit.prompt_index
