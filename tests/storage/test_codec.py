"""How numbers become bytes: how much is lost, what is refused, and that any Zarr reader reads them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from persona_atlas.jobs.errors import UnitError
from persona_atlas.storage.codec import create_array, encode_block, round_mantissa
from zarr.storage import LocalStore

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
# The largest float32 that rounds to a finite number, whatever the bits.
LARGE = float(np.float32(2.0**127))

normal_floats = st.floats(-LARGE, LARGE, width=32).filter(lambda x: x == 0 or abs(x) >= SMALLEST_NORMAL)
bits = st.integers(1, 23)


def floats_of(pattern: int) -> np.ndarray:
    return np.array([pattern], dtype=np.uint32).view(np.float32)


@given(values=hnp.arrays(np.float32, st.integers(1, 40), elements=normal_floats), keep=bits)
@settings(max_examples=150, deadline=None)
def test_rounding_errs_by_at_most_half_of_the_last_bit_kept(values: np.ndarray, keep: int):
    rounded = round_mantissa(values, keep)
    assert rounded.dtype == np.float32
    error = np.abs(rounded.astype(np.float64) - values.astype(np.float64))
    assert (error <= 2.0 ** -(keep + 1) * np.abs(values.astype(np.float64))).all()


@given(patterns=hnp.arrays(np.uint32, st.integers(1, 40)), keep=bits)
@settings(max_examples=150, deadline=None)
def test_rounding_twice_changes_nothing_and_only_the_bits_kept_are_set(patterns: np.ndarray, keep: int):
    values = patterns.view(np.float32)
    once = round_mantissa(values, keep)
    numbers = ~np.isnan(values)
    assert np.array_equal(once, round_mantissa(once, keep), equal_nan=True)
    assert not (once[numbers].view(np.uint32) & ((1 << (23 - keep)) - 1)).any()


@given(patterns=hnp.arrays(np.uint32, st.integers(1, 40)), keep=bits)
@settings(max_examples=150, deadline=None)
def test_nan_stays_nan_and_a_number_never_becomes_one(patterns: np.ndarray, keep: int):
    values = patterns.view(np.float32)
    assert np.array_equal(np.isnan(round_mantissa(values, keep)), np.isnan(values))


@pytest.mark.parametrize("pattern", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], ids=hex)
def test_every_kind_of_nan_stays_nan(pattern: int):
    assert np.isnan(round_mantissa(floats_of(pattern), 10)).all()


def test_infinities_stay_and_rounding_leaves_its_argument_alone():
    values = np.array([np.inf, -np.inf, 1.0009765], dtype=np.float32)
    before = values.copy()
    assert round_mantissa(values, 8).tolist() == [np.inf, -np.inf, 1.0]
    assert np.array_equal(values, before)


@given(
    num_rows=st.integers(1, 5),
    spare=st.integers(0, 3),
    num_layers=st.integers(1, 4),
    d_model=st.sampled_from([1, 16, 33]),
    keep=st.sampled_from([7, 10, 23]),
    row_block=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_a_shard_put_in_place_by_hand_is_read_by_plain_zarr(
    tmp_path_factory: pytest.TempPathFactory,
    num_rows: int,
    spare: int,
    num_layers: int,
    d_model: int,
    keep: int,
    row_block: int,
    seed: int,
):
    values = np.random.default_rng(seed).standard_normal((num_rows, num_layers, d_model)).astype(np.float32) * 100
    values[num_rows // 2] = np.nan
    rows = num_rows + spare
    root = tmp_path_factory.mktemp("zarr")
    layers = range(10, 10 + num_layers)
    create_array(
        LocalStore(root),
        "x",
        num_rows=3 * rows,
        rows_per_block=rows,
        layers=layers,
        d_model=d_model,
        mantissa_bits=keep,
    )
    shard = root / "x" / "c" / str(row_block) / "0" / "0"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(encode_block(values, rows, keep) or b"")
    if num_rows == 1:
        shard.unlink()
    array = zarr.open_array(str(root / "x"), mode="r")
    assert array.shape == (3 * rows, num_layers, d_model)
    assert array.attrs["layers"] == list(layers)
    expected = np.full(array.shape, np.nan, dtype=np.float32)
    expected[row_block * rows : row_block * rows + num_rows] = round_mantissa(values, keep)
    assert np.array_equal(np.asarray(array[...]), expected, equal_nan=True)


def test_a_block_is_one_object_the_same_that_zarr_itself_writes(tmp_path: Path):
    values = np.random.default_rng(0).standard_normal((4, 3, 16)).astype(np.float32)
    array = create_array(
        LocalStore(tmp_path), "x", num_rows=8, rows_per_block=4, layers=[0, 1, 2], d_model=16, mantissa_bits=23
    )
    array[4:8] = values
    written = [path for path in (tmp_path / "x" / "c").rglob("*") if path.is_file()]
    assert written == [tmp_path / "x" / "c" / "1" / "0" / "0"]
    theirs = written[0].read_bytes()
    written[0].write_bytes(encode_block(values, 4, 23))
    assert np.array_equal(np.asarray(zarr.open_array(str(tmp_path / "x"), mode="r")[4:8]), values)
    assert len(theirs) == len(encode_block(values, 4, 23))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.finfo(np.float32).max])
def test_a_number_that_is_or_becomes_infinite_is_refused(value: float):
    values = np.ones((2, 2, 4), dtype=np.float32)
    values[1, 0, 3] = value
    with pytest.raises(UnitError) as caught:
        encode_block(values, 2, 10)
    assert caught.value.code == "overflow"


def test_numbers_beyond_float16_are_kept():
    values = np.full((1, 1, 8), 300_000.0, dtype=np.float32)
    assert np.isfinite(round_mantissa(values, 10)).all()
    assert encode_block(values, 1, 10)


def test_a_block_without_a_single_number_makes_no_object():
    assert encode_block(np.full((3, 2, 8), np.nan, dtype=np.float32), 4, 10) == b""


@pytest.mark.parametrize(("keep", "bytes_per_value"), [(7, 1.8), (10, 2.2), (23, 4.1)])
def test_a_value_takes_about_as_many_bytes_as_planned(keep: int, bytes_per_value: float):
    values = np.random.default_rng(0).standard_normal((48, 4, 1024)).astype(np.float32)
    assert 1.0 < len(encode_block(values, 48, keep)) / values.size < bytes_per_value


def test_rows_that_a_short_unit_leaves_empty_cost_next_to_nothing():
    values = np.random.default_rng(0).standard_normal((8, 2, 256)).astype(np.float32)
    assert len(encode_block(values, 240, 10)) < 1.2 * len(encode_block(values, 8, 10))
