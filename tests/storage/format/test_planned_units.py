"""The list of planned units: read back as planned, in the plan's order, or not at all."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from persona_atlas.jobs.errors import StoreError
from persona_atlas.jobs.plan import Plan
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.planned_units import encode_units, read_units
from persona_atlas.storage.locations.location import Location, open_location

from fakes import small_plan, small_spec
from stored_runs import record_of

PERSONAS = {
    "roles": {"names": ["pirate", "poet"], "prompts": 2, "questions": 3, "samples": 2},
    "traits": {"names": ["anxious"], "prompts": 1, "questions": 2},
    "default": {"prompts": 1, "questions": 2},
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan(small_spec(personas=PERSONAS))


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


def test_units_are_read_back_as_planned_in_the_plans_order(location: Location, plan: Plan):
    location.write(layout.units_path(record_of(plan).units_sha256), encode_units(plan.units))
    found = read_units(location, record_of(plan))
    assert list(found) == [unit.unit_id for unit in plan.units]
    assert tuple(found.values()) == plan.units
    assert [list(unit.addresses()) for unit in found.values()] == [list(unit.addresses()) for unit in plan.units]


def test_the_same_plan_gives_the_same_bytes(plan: Plan):
    assert sha256(encode_units(plan.units)).hexdigest() == record_of(plan).units_sha256
    assert encode_units(reversed(plan.units)) != encode_units(plan.units)


def test_a_list_that_is_missing_says_how_to_have_it_again(location: Location, plan: Plan):
    with pytest.raises(StoreError, match="is missing") as caught:
        read_units(location, record_of(plan))
    path = layout.units_path(record_of(plan).units_sha256)
    assert (caught.value.code, caught.value.file) == ("bad_object", f"{location.url}/{path}")
    assert caught.value.hint is not None


def test_any_other_list_is_refused(location: Location, plan: Plan):
    data = encode_units(plan.units)
    others = [b"", data[:-1], data + b"x", encode_units(plan.units[:-1]), encode_units(reversed(plan.units))]
    others += [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(0, len(data), 97)]
    for other in others:
        location.write(layout.units_path(record_of(plan).units_sha256), other)
        with pytest.raises(StoreError, match="not the one the run was begun with"):
            read_units(location, record_of(plan))
