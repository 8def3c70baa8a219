"""The driver's side of a run: it begins once, is not mixed with another, and makes room for its rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.jobs.interventions import Ablate, Direction
from persona_atlas.jobs.personas import Question
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.work.run_edits import ResolvedEntry, RunEdits
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.planned_units import encode_units, read_units
from persona_atlas.storage.format.records import RunRecord
from persona_atlas.storage.format.stored_edits import stored_edits
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.run.run_store import begin_run, check_same_run, read_run_record, reserve_rows

from counted import Counted
from fakes import FACTS, small_plan, small_spec
from stored_runs import begin, record_of, store_run


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan()


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


def test_a_run_is_begun_once_and_begun_again_by_the_same_job_alone(store_url: str, plan: Plan):
    location = open_location(store_url)
    assert read_run_record(location) is None
    units = encode_units(plan.units)
    begin_run(location, record_of(plan), units)
    first = location.read(layout.RUN_RECORD)
    begin_run(location, record_of(plan).model_copy(update={"created_at": "later"}), units)
    assert location.read(layout.RUN_RECORD) == first
    assert read_run_record(location) == record_of(plan)
    other = small_plan(small_spec(seed=9, personas={"roles": {"names": ["poet"]}}))
    with pytest.raises(InputError) as caught:
        begin_run(location, record_of(other), encode_units(other.units))
    assert caught.value.code == "other_run"
    assert location.read(layout.RUN_RECORD) == first
    assert location.read(layout.units_path(record_of(plan).units_sha256)) == units


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"sampling": {"temperature": 0.1}}, "sampling.temperature", "begun with 0.7, the spec says 0.1"),
        ({"seed": 3}, "seed", "begun with 0, the spec says 3"),
        ({"capture": {"layers": [1]}}, "capture.layers", '"all"'),
        ({"store": {"url": "x", "mantissa_bits": 7}}, "store.mantissa_bits", "begun with 10"),
        ({"model": {"source": "other", "name": "Nobody"}}, "model.source", '"other"'),
    ],
)
def test_another_spec_is_refused_with_the_field_and_both_values(
    plan: Plan, changes: dict[str, Any], field: str, said: str
):
    with pytest.raises(InputError, match="Give this job its own") as caught:
        check_same_run(record_of(plan), small_plan(small_spec(**changes)), "/a/run")
    assert (caught.value.code, caught.value.field) == ("other_run", field)
    assert said in str(caught.value)
    assert "/a/run" in str(caught.value)


def test_another_model_or_other_texts_under_the_same_names_are_refused(plan: Plan):
    with pytest.raises(InputError) as caught:
        check_same_run(record_of(plan), small_plan(facts=replace(FACTS, fingerprint="0" * 64)), "u")
    assert caught.value.field == "model.source"
    catalog = load_catalog()
    reworded = replace(catalog, questions=(Question("q001", "Else?"), *catalog.questions[1:]))
    with pytest.raises(InputError) as caught:
        check_same_run(record_of(plan), small_plan(catalog=reworded), "u")
    assert caught.value.field == "personas.catalog"
    assert "name a directory with the texts of that run" in str(caught.value)


def test_the_same_job_kept_elsewhere_or_spread_otherwise_is_the_same_run(plan: Plan):
    check_same_run(record_of(plan), small_plan(small_spec("other", placement={"replicas": 3})), "u")


def test_a_place_that_holds_something_else_is_refused(store_url: str):
    location = open_location(store_url)
    location.write("photos/cat.jpg", b"x")
    for act in (lambda: read_run_record(location), lambda: open_run(store_url)):
        with pytest.raises(InputError) as caught:
            act()
        assert (caught.value.code, caught.value.field) == ("not_a_run", "store.url")


def test_a_driver_that_died_before_it_wrote_the_record_leaves_a_place_that_can_be_used(location: Location, plan: Plan):
    with acquire(location, 3):
        pass
    assert read_run_record(location) is None
    with acquire(location, 3) as held:
        begin(location, plan, held)
    assert read_run_record(location) == record_of(plan)


def test_a_record_that_is_there_has_its_list_of_units(location: Location, plan: Plan):
    counted = Counted(location)
    begin_run(counted, record_of(plan), encode_units(plan.units))
    assert [(asked.method, asked.path) for asked in counted.asked if asked.method in ("write", "create")] == [
        ("write", layout.units_path(record_of(plan).units_sha256)),
        ("create", layout.RUN_RECORD),
    ]


def test_a_store_whose_record_was_deleted_says_that_part_of_it_is_gone(store_url: str, plan: Plan):
    location = store_run(store_url, plan)
    location.delete([layout.RUN_RECORD])
    with pytest.raises(StoreError, match="part of it was deleted") as caught:
        open_run(store_url)
    assert caught.value.code == "half_deleted"


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"layout_version": %d}' % layout.LAYOUT_VERSION, b'{"layout_version": "2"}', b"[" * 100_000],
)
def test_a_damaged_record_is_told_from_a_missing_one(location: Location, plan: Plan, damage: bytes):
    begin_run(location, record_of(plan), encode_units(plan.units))
    location.write(layout.RUN_RECORD, damage)
    with pytest.raises(StoreError, match=r"run\.json") as caught:
        open_run(location.url)
    assert caught.value.code == "bad_record"


EDITS = stored_edits(RunEdits((ResolvedEntry({"ablate": "axis"}, "runs/x", (Ablate(0, Direction.of([1.0])),)),)))


def edited(value: Any) -> Any:
    if isinstance(value, dict):
        return {**value, "a_key_more": 1}
    if isinstance(value, list | tuple):
        return [*value, 9]
    return value[:-1] + ("1" if value.endswith("0") else "0") if isinstance(value, str) else value + 1


@pytest.mark.parametrize("field", sorted(set(RunRecord.model_fields) - {"layout_version"}))
def test_a_record_edited_in_any_field_is_refused(location: Location, plan: Plan, field: str):
    # The built-in engine and the lack of interventions are not stored.
    usual = record_of(plan)
    unusual = {"engine": "vllm", "interventions": EDITS[0]}
    body = {name: getattr(usual, name) for name in RunRecord.model_fields if name not in ("seal", *unusual)}
    record = RunRecord.sealed(**body, **unusual)
    begin_run(location, record, encode_units(plan.units), EDITS[1])
    data = json.loads(location.read(layout.RUN_RECORD) or b"")
    location.write(layout.RUN_RECORD, json.dumps(data).encode())
    assert open_run(location.url).record == record, "what it says is sealed, not how it is spaced"
    location.write(layout.RUN_RECORD, json.dumps(data | {field: edited(data[field])}).encode())
    with pytest.raises(StoreError, match=r"run\.json") as caught:
        open_run(location.url)
    assert caught.value.code == "bad_record"


def test_of_two_plans_that_begin_at_once_neither_writes_over_the_list_of_the_other(location: Location, plan: Plan):
    """The later one looked for a record before there was one."""

    class Early(Counted):
        def read(self, path: str, *more: Any) -> bytes | None:
            found = super().read(path, *more)
            if path == layout.RUN_RECORD and found is None:
                begin_run(location, record_of(plan), encode_units(plan.units))
            return found

    other = small_plan(small_spec(personas={"roles": {"names": ["poet"]}}))
    with pytest.raises(InputError) as caught:
        begin_run(Early(location), record_of(other), encode_units(other.units))
    assert caught.value.code == "other_run"
    assert tuple(read_units(location, record_of(plan)).values()) == plan.units


@pytest.mark.parametrize("added", [{}, {"a_field_of_tomorrow": 1}], ids=["same_fields", "new_field"])
def test_a_store_of_a_newer_layout_asks_for_an_upgrade(location: Location, plan: Plan, added: dict[str, object]):
    begin_run(location, record_of(plan), encode_units(plan.units))
    data = json.loads(location.read(layout.RUN_RECORD) or b"")
    newer = data | {"layout_version": max(layout.LAYOUT_VERSIONS) + 1} | added
    location.write(layout.RUN_RECORD, json.dumps(newer).encode())
    with pytest.raises(StoreError, match="Upgrade persona-atlas") as caught:
        open_run(location.url)
    assert caught.value.code == "newer_layout"


def test_a_store_of_an_older_layout_says_which_version_it_has(location: Location, plan: Plan):
    begin_run(location, record_of(plan), encode_units(plan.units))
    data = json.loads(location.read(layout.RUN_RECORD) or b"")
    del data["units_sha256"]
    location.write(layout.RUN_RECORD, json.dumps(data | {"layout_version": 1}).encode())
    with pytest.raises(StoreError, match=f"version 1; this Persona Atlas reads {layout.LAYOUT_VERSION}") as caught:
        open_run(location.url)
    assert caught.value.code == "older_layout"


def test_more_room_keeps_the_rows_that_are_there_and_less_takes_none_away(store_url: str, plan: Plan):
    location = store_run(store_url, plan)
    before = open_run(store_url).activations(layer="all").values
    array = zarr.open_array(location.zarr(read_only=True), path=layout.array_path("resid_post", "response_mean"))
    rows = array.shape[0]
    assert rows == 2 * len(plan.units) * plan.rows_per_block
    for row_blocks in (50, 1):
        reserve_rows(location, record_of(plan), row_blocks)
        array = zarr.open_array(location.zarr(read_only=True), path=layout.array_path("resid_post", "response_mean"))
        assert array.shape[0] == max(rows, 50 * plan.rows_per_block)
        assert np.array_equal(open_run(store_url).activations(layer="all").values, before)
