"""What a worker holds, and what it says of itself: what it said before it was handed more is no news."""

from __future__ import annotations

from dataclasses import replace

from persona_atlas.cluster.load import CALLS_IN_FLIGHT, Hungry, Load
from persona_atlas.jobs.units import UnitOrder

from fakes import small_plan


def orders_of(*names: str) -> list[UnitOrder]:
    """Orders of units of three rollouts."""
    plan = small_plan()
    units = [plan.by_id[f"role.{name}.pos.p0.b0"] for name in names]
    return [UnitOrder(unit, plan.texts(unit), 1, number) for number, unit in enumerate(units)]


def test_units_are_answered_one_by_one_and_what_is_left_is_given_back():
    load = Load()
    pirate, poet, teacher = orders_of("pirate", "poet", "teacher")
    load.take("first", [pirate, poet])
    load.take("second", [teacher])
    assert load.rollouts == 9
    assert load.answered("first", poet.unit.unit_id) == poet
    assert (load.rollouts, load.holds("first"), load.orders) == (6, True, [pirate, teacher])
    assert load.give_back("first") == [pirate]
    assert (load.rollouts, load.holds("first"), load.is_empty) == (3, False, False)
    assert load.give_back("first") == []
    load.answered("second", teacher.unit.unit_id)
    assert (load.rollouts, load.is_empty) == (0, True)


def test_hunger_from_before_the_last_assignment_does_not_count():
    load = Load()
    pirate, poet, teacher = orders_of("pirate", "poet", "teacher")
    load.take("first", [pirate, poet])
    assert not load.has_room_now
    load.hears(Hungry(2))
    assert load.has_room_now
    load.take("second", [teacher])
    load.hears(Hungry(2))
    assert not load.has_room_now
    load.hears(Hungry(3))
    assert load.has_room_now


def test_ahead_is_up_to_two_batches_and_whatever_it_says_it_could_do_with():
    load = Load()
    pirate, poet, teacher = orders_of("pirate", "poet", "teacher")
    assert not load.has_room_ahead(6), "that has nothing at all is idle"
    for number, order in enumerate((pirate, poet, teacher)):
        load.take(number, [order])
        assert load.has_room_ahead(6)
    load.take(3, [replace(pirate, row_block=3)])
    assert not load.has_room_ahead(6)
    load.hears(Hungry(4))
    assert load.has_room_ahead(6), "what a batch holds is an estimate, what it asks for is not"


def test_nothing_is_handed_out_beside_a_suspect_nor_in_ever_more_calls():
    (pirate,) = orders_of("pirate")
    suspect = Load()
    suspect.take(0, [replace(pirate, is_suspect=True)])
    suspect.hears(Hungry(1))
    assert not suspect.has_room_now
    assert not suspect.has_room_ahead(100)
    busy = Load()
    for call in range(CALLS_IN_FLIGHT):
        busy.take(call, [pirate])
    busy.hears(Hungry(CALLS_IN_FLIGHT))
    assert not busy.has_room_now
    assert not busy.has_room_ahead(1000)
