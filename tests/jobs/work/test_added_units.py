"""Units of what a larger plan has and earlier units have not: each rollout once, in blocks that are there already."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.work.added_units import BlockRoom, first_left_out, units_to_add
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import WorkUnit
from persona_atlas.storage.format.stored_units import stored_unit


def room(rows: int, tokens: int | None = None) -> BlockRoom:
    """Room of which every row takes ten tokens."""
    return BlockRoom(rows, tokens, lambda unit: 10 * unit.num_rollouts)


def asked(questions: int, samples: int, prompts: int, personas: int = 1, most: int = 3) -> list[WorkUnit]:
    """Units as a plan of everything at once has them."""
    return [
        WorkUnit.of_questions(f"role.r{r}.pos.p{p}.b{b}", "role", f"r{r}", "pos", p, tuple(some), samples)
        for r in range(personas)
        for p in range(prompts)
        for b, some in enumerate(_batched(range(questions), most))
    ]


def _batched(numbers: range, most: int) -> list[tuple[int, ...]]:
    return [tuple(numbers[start : start + most]) for start in range(0, len(numbers), most)]


def addresses(units: list[WorkUnit] | tuple[WorkUnit, ...]) -> list[RolloutAddress]:
    return [address for unit in units for address in unit.addresses()]


_SIZES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 2), st.integers(1, 2))


@given(before=_SIZES, more=_SIZES, rows=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_every_missing_rollout_is_in_one_unit_that_fits_a_block_and_can_be_stored(
    before: tuple[int, ...], more: tuple[int, ...], rows: int
):
    planned = asked(*before)
    whole = asked(*(old + new - 1 for old, new in zip(before, more, strict=True)))
    added = units_to_add(planned, whole, 1, room(rows))
    # Twice, as after another addition.
    again = asked(*(old + new for old, new in zip(before, more, strict=True)))
    added_again = units_to_add([*planned, *added], again, 2, room(rows))

    everything = [*planned, *added, *added_again]
    assert Counter(addresses(everything)) == Counter(addresses(again))
    assert all(unit.num_rollouts <= rows for unit in (*added, *added_again))
    assert len({unit.unit_id.lower() for unit in everything}) == len(everything)
    assert [stored_unit(unit).to_unit() for unit in everything] == everything
    assert first_left_out(everything, again) is None
    assert units_to_add(everything, again, 3, room(rows)) == ()


def test_the_units_of_an_addition_have_its_number_and_as_many_questions_as_fit():
    added = units_to_add(asked(4, 1, 1), asked(8, 2, 1), 3, room(4))
    assert [(unit.unit_id, unit.question_indices, unit.sample_indices) for unit in added] == [
        ("role.r0.pos.p0.a3.b0", (0, 1, 2, 3), (1, 1, 1, 1)),
        ("role.r0.pos.p0.a3.b1", (4, 4, 5, 5), (0, 1, 0, 1)),
        ("role.r0.pos.p0.a3.b2", (6, 6, 7, 7), (0, 1, 0, 1)),
    ]


def test_a_rollout_that_is_left_out_is_named():
    assert first_left_out(asked(4, 2, 2), asked(4, 1, 2)) == RolloutAddress("role", "r0", "pos", 0, 0, 1)
    assert first_left_out(asked(4, 2, 2), asked(3, 2, 2)) == RolloutAddress("role", "r0", "pos", 0, 3, 0)
    assert first_left_out(asked(4, 2, 2, personas=2), asked(4, 2, 2)) == RolloutAddress("role", "r1", "pos", 0, 0, 0)


def talks(*lengths: int) -> list[WorkUnit]:
    """One unit of conversations with so many turns each."""
    rows = [(talk, 2 * turn + 1) for talk, length in enumerate(lengths) for turn in range(length)]
    conversations, turns = zip(*rows, strict=True)
    samples = (0,) * len(rows)
    return [
        WorkUnit("c.talks.pos.p0.b0", "conversation", "talks", "pos", 0, conversations, samples, turns, conversations)
    ]


def test_a_conversation_stays_whole_and_units_fit_rows_and_tokens():
    added = units_to_add(talks(2), talks(2, 1, 2, 1, 3), 1, room(3))
    assert [unit.conversation_indices for unit in added] == [(1, 2, 2), (3,), (4, 4, 4)]
    added = units_to_add(talks(2), talks(2, 1, 2, 1, 3), 1, room(8, tokens=30))
    assert [unit.conversation_indices for unit in added] == [(1, 2, 2), (3,), (4, 4, 4)]
    assert [key for key, _ in groupby(place for unit in added for place in unit.conversation_indices or ())] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(("limits", "said"), [(room(2), "3 messages"), (room(8, tokens=20), "up to 30 tokens")])
def test_a_conversation_that_fits_no_block_of_the_run_is_refused(limits: BlockRoom, said: str):
    with pytest.raises(InputError, match=said) as caught:
        units_to_add(talks(1), talks(1, 3), 1, limits)
    assert (caught.value.code, caught.value.field) == ("cannot_grow", "conversations.source")


def test_a_conversation_that_is_at_another_place_of_the_input_counts_as_left_out():
    before, (unit,) = talks(1, 1), talks(1, 1)
    moved = WorkUnit(unit.unit_id, unit.kind, unit.persona, unit.polarity, 0, (0, 1), (0, 0), unit.turn_indices, (0, 5))
    assert first_left_out(before, [moved]) == RolloutAddress("conversation", "talks", "pos", 0, 1, 0, 1)
