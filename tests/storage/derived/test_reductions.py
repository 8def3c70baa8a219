"""Reductions in the store: read back whole, the newest is current, and a damaged one says how to mend it."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.storage.derived.reduction import ARRAYS, LAYER_AXIS, TEXTS
from persona_atlas.storage.derived.reductions import (
    Reduction,
    ReductionWriter,
    check_reduction,
    make_current,
    read_current_reduction,
    write_reduction,
)
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations.location import Location, open_location

SIZES = {"G": 4, "P": 3, "T": 1, "A": 2, "L": 2, "D": 8, "K": 2, "M": 2, "N": 11, "Q": 2, "2": 2}


def full_reduction() -> Reduction:
    """Every array that the docstring names, in the shape that it states."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    stated = re.findall(r"^        (\w+): ``\(([\w, ]+)\)``( int64)?", str(Reduction.__doc__), re.MULTILINE)
    for name, axes, is_whole in stated:
        shape = [SIZES[axis] for axis in axes.replace(" ", "").split(",") if axis]
        whole = random.integers(0, 99, shape).astype(np.int64)
        arrays[name] = whole if is_whole else random.standard_normal(shape).astype(np.float32)
    return Reduction(
        reduction_id="full",
        layers=(1, 3),
        role_names=("pirate", "poet", "stoic"),
        trait_names=("stoic",),
        facts={"units": 12, "filter": None, "hook_point": "resid_post"},
        threshold_labels=("p0.01", "p0.25"),
        personas=(("role", "pirate", "pos"), ("trait", "stoic", "neg")),
        **arrays,
    )


def assert_same(found: Reduction | None, expected: Reduction) -> None:
    assert found is not None
    for field in fields(Reduction):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert isinstance(a, np.ndarray), field.name
            assert a.dtype == b.dtype, field.name
            assert np.array_equal(a, b), field.name
        else:
            assert a == b, field.name
            assert type(a) is type(b), field.name


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


def test_a_reduction_is_read_back_whole(store_url: str):
    location = open_location(store_url)
    assert read_current_reduction(location) is None
    full = full_reduction()
    assert {f.name for f in fields(Reduction) if getattr(full, f.name) is None} == set(), "or this proves too little"
    write_reduction(location, full)
    assert_same(read_current_reduction(location), full)


def test_what_could_not_be_had_stays_none(location: Location):
    little = Reduction("little", (0,), (), (), {})
    write_reduction(location, little)
    assert_same(read_current_reduction(location), little)


def test_the_newest_is_current_and_the_older_one_stays(location: Location):
    full = full_reduction()
    write_reduction(location, full)
    newer = replace(full, reduction_id="newer", axis=None)
    write_reduction(location, newer)
    assert_same(read_current_reduction(location), newer)
    assert make_current(location, "full")
    assert_same(read_current_reduction(location), full)


def test_of_two_that_write_one_reduction_the_first_to_finish_stays_whole(location: Location):
    write_reduction(location, full_reduction())
    write_reduction(location, replace(full_reduction(), axis=None))
    assert_same(read_current_reduction(location), full_reduction())


def test_a_lost_chunk_is_an_error_and_not_zeros(location: Location):
    write_reduction(location, full_reduction())
    (chunk,) = [p for p in Path(location.url).glob("analysis/full-*/axis/c/**/*") if p.is_file()]
    chunk.unlink()
    with pytest.raises(StoreError, match="not those that were written"):
        check_reduction(location)


@pytest.mark.parametrize("array", ["axis", "role_counts", "projection_rows"])
def test_a_lost_array_is_an_error_and_not_one_that_could_not_be_had(location: Location, array: str):
    write_reduction(location, full_reduction())
    (group,) = Path(location.url).glob("analysis/full-*")
    shutil.rmtree(group / array)
    with pytest.raises(StoreError, match="run reduce again") as caught:
        check_reduction(location)
    assert caught.value.code == "bad_reduction"


@pytest.mark.parametrize("array", ["role_counts", "projection_rows"])
def test_a_lost_chunk_of_whole_numbers_is_an_error_too(location: Location, array: str):
    write_reduction(location, full_reduction())
    (chunk,) = Path(location.url).glob(f"analysis/full-*/{array}/c/0")
    chunk.unlink()
    with pytest.raises(StoreError, match="not those that were written"):
        check_reduction(location)


def test_a_group_that_is_gone_is_damage_wherever_the_store_is(store_url: str):
    location = open_location(store_url)
    write_reduction(location, full_reduction())
    location.delete([path for path in location.sizes("analysis") if path.startswith("analysis/full-")])
    with pytest.raises(StoreError, match="run reduce again") as caught:
        read_current_reduction(location)
    assert caught.value.code == "bad_reduction"


def test_what_is_not_stored_cannot_be_made_current(location: Location):
    assert not make_current(location, "nothing")
    assert read_current_reduction(location) is None


def test_a_reader_sees_no_reduction_before_it_is_whole(location: Location):
    write_reduction(location, full_reduction())
    pointer = location.read(layout.CURRENT_REDUCTION)
    write_reduction(location, replace(full_reduction(), reduction_id="half"))
    assert pointer is not None
    location.write(layout.CURRENT_REDUCTION, pointer)
    found = read_current_reduction(location)
    assert found is not None
    assert found.reduction_id == "full"


@pytest.mark.parametrize("pointer", [b"", b"{}", b"[1]", b'{"reduction_id": "gone"}'])
def test_a_damaged_pointer_says_how_to_mend_it(location: Location, pointer: bytes):
    write_reduction(location, full_reduction())
    location.write(layout.CURRENT_REDUCTION, pointer)
    with pytest.raises(StoreError, match="run reduce again") as caught:
        read_current_reduction(location)
    assert caught.value.code == "bad_reduction"


def test_a_layer_is_found_by_its_number():
    assert full_reduction().position(3) == 1
    for ask in (full_reduction().position, lambda layer: full_reduction().read("axis", [layer])):
        with pytest.raises(InputError, match="layer 40 is not in the reduction, which has") as caught:
            ask(40)
        assert (caught.value.code, caught.value.field) == ("no_such_layer", "layer")


def test_the_axis_of_the_layers_is_where_the_docstring_has_it():
    full = full_reduction()
    for name in ARRAYS:
        axes = re.search(rf"^        {name}: ``\(([\w, ]+)\)``", str(Reduction.__doc__), re.MULTILINE)
        assert axes is not None, name
        letters = axes[1].replace(" ", "").split(",")
        assert LAYER_AXIS.get(name) == (letters.index("L") if "L" in letters else None), name
    assert np.array_equal(np.asarray(full.read("mean", [3])), np.asarray(full.mean)[:, 1:])


def test_written_a_layer_at_a_time_it_is_the_same(location: Location):
    full = full_reduction()
    writer = ReductionWriter(location, "full", 2)
    for start, layer in enumerate(full.layers):
        writer.write({name: np.asarray(full.read(name, [layer])) for name in LAYER_AXIS}, start)
    writer.write({name: getattr(full, name) for name in ARRAYS if name not in LAYER_AXIS})
    assert read_current_reduction(location) is None
    writer.finish(**{name: getattr(full, name) for name in TEXTS})
    check_reduction(location)
    assert_same(read_current_reduction(location), full)


def test_only_what_is_used_is_read_and_damage_elsewhere_does_not_matter(location: Location):
    full = full_reduction()
    writer = ReductionWriter(location, "full", 2)
    for start, layer in enumerate(full.layers):
        writer.write({name: np.asarray(full.read(name, [layer])) for name in ("mean", "axis")}, start)
    writer.finish(**{name: getattr(full, name) for name in TEXTS})
    (damaged,) = Path(location.url).glob("analysis/full-*/mean/c/0/1/0")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    found = read_current_reduction(location)
    assert found is not None
    assert np.array_equal(np.asarray(found.axis), np.asarray(full.axis))
    assert np.array_equal(np.asarray(found.read("mean", [1])), np.asarray(full.mean)[:, :1])
    for ask in (lambda: found.read("mean", [3]), lambda: found.mean):
        with pytest.raises(StoreError, match="array mean"):
            ask()
