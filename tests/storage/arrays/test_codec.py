"""How numbers become bytes: how much is lost, what is refused, and that any Zarr reader reads them back."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from persona_atlas.jobs.errors import UnitError
from persona_atlas.storage.arrays.codec import (
    EncodedShard,
    create_array,
    decode_chunk,
    decode_chunk_lengths,
    decode_chunks,
    encode_shard,
    round_mantissa,
)
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


def encoded(values: np.ndarray, rows_per_block: int, keep: int) -> EncodedShard:
    block = encode_shard(values, rows_per_block, keep)
    assert block is not None
    return block


def normal_block(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 100


@given(
    num_rows=st.integers(1, 5),
    spare=st.integers(0, 3),
    num_layers=st.integers(1, 4),
    d_model=st.sampled_from([1, 16, 33]),
    keep=st.sampled_from([7, 10, 23]),
    row_block=st.integers(0, 2),
    empty=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_a_shard_is_byte_for_byte_the_one_that_zarr_itself_writes(
    tmp_path_factory: pytest.TempPathFactory,
    num_rows: int,
    spare: int,
    num_layers: int,
    d_model: int,
    keep: int,
    row_block: int,
    empty: int,
    seed: int,
):
    values = normal_block(num_rows, num_layers, d_model, seed=seed)
    values[empty:] = np.nan
    rows = num_rows + spare
    root = tmp_path_factory.mktemp("zarr")
    layers = range(10, 10 + num_layers)
    array = create_array(
        LocalStore(root),
        "x",
        num_rows=3 * rows,
        rows_per_block=rows,
        layers=layers,
        d_model=d_model,
        mantissa_bits=keep,
    )
    first = row_block * rows
    rounded = round_mantissa(values, keep)
    array[first : first + num_rows] = rounded
    written = [path for path in (root / "x" / "c").rglob("*") if path.is_file()]
    block = encode_shard(values, rows, keep)
    if block is None:
        assert written == []
        assert empty == 0
    else:
        shard = root / "x" / "c" / str(row_block) / "0" / "0"
        assert written == [shard]
        assert block.data == shard.read_bytes()
        assert block.chunk_bytes == decode_chunk_lengths(block.data, num_layers)
    assert array.attrs["layers"] == list(layers)
    expected = np.full(array.shape, np.nan, dtype=np.float32)
    expected[first : first + num_rows] = rounded
    assert np.array_equal(np.asarray(array[...]), expected, equal_nan=True)


@given(num_rows=st.integers(1, 4), spare=st.integers(0, 2), num_layers=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_each_layer_is_decoded_from_its_own_bytes(num_rows: int, spare: int, num_layers: int, seed: int):
    values = normal_block(num_rows, num_layers, 8, seed=seed)
    block = encoded(values, num_rows + spare, 10)
    end = 0
    for layer, num_bytes in enumerate(block.chunk_bytes):
        begin, end = end, end + num_bytes
        chunk_RD = decode_chunk(block.data[begin:end], num_rows + spare, 8)
        assert np.array_equal(chunk_RD[:num_rows], round_mantissa(values[:, layer], 10))
        assert np.isnan(chunk_RD[num_rows:]).all()


@given(
    num_rows=st.integers(1, 20),
    spare=st.integers(0, 2),
    step=st.sampled_from([1, 4, 7]),
    num_layers=st.integers(1, 3),
    row_block=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_a_shard_of_several_chunks_a_layer_is_read_by_zarr_and_lies_layer_by_layer(
    tmp_path_factory: pytest.TempPathFactory,
    num_rows: int,
    spare: int,
    step: int,
    num_layers: int,
    row_block: int,
    seed: int,
):
    values = normal_block(num_rows, num_layers, 8, seed=seed)
    num_chunks = -(-num_rows // step)
    rows = (num_chunks + spare) * step
    root = tmp_path_factory.mktemp("zarr")
    array = create_array(
        LocalStore(root),
        "x",
        num_rows=3 * rows,
        rows_per_block=rows,
        layers=range(num_layers),
        d_model=8,
        mantissa_bits=10,
        rows_per_chunk=step,
    )
    block = encode_shard(values, rows, 10, step)
    assert block is not None
    shard = root / "x" / "c" / str(row_block) / "0" / "0"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(block.data)
    expected = np.full(array.shape, np.nan, dtype=np.float32)
    expected[row_block * rows : row_block * rows + num_rows] = round_mantissa(values, 10)
    assert np.array_equal(np.asarray(array[...]), expected, equal_nan=True)
    assert block.chunk_bytes == decode_chunk_lengths(block.data, num_layers, num_chunks + spare)
    assert len(block.chunk_bytes) == num_layers * num_chunks, "chunks without a row are left out"
    second = sum(block.chunk_bytes[:num_chunks])
    first = decode_chunk(block.data[: block.chunk_bytes[0]], step, 8)
    assert np.array_equal(first[: min(step, num_rows)], round_mantissa(values[:step, 0], 10))
    if num_layers > 1:
        chunk = decode_chunk(block.data[second : second + block.chunk_bytes[num_chunks]], step, 8)
        assert np.array_equal(chunk[: min(step, num_rows)], round_mantissa(values[:step, 1], 10))


def test_a_hole_between_the_chunks_of_a_layer_is_refused():
    block = encode_shard(normal_block(3, 1, 8), 4, 10, 1)
    assert block is not None
    index = np.frombuffer(block.data[sum(block.chunk_bytes) : -4], dtype="<u8").reshape(4, 1, 2).copy()
    index[1] = 2**64 - 1
    data = index.tobytes()
    with pytest.raises(ValueError, match="follow"):
        decode_chunk_lengths(b"x" + data + google_crc32c.value(data).to_bytes(4, "little"), 1, 4)


def flips(data: bytes) -> list[bytes]:
    """Every other byte string that differs in one bit."""
    return [
        data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
        for place in range(len(data))
        for bit in range(8)
    ]


def decode_as_one_of_several(data: bytes, rows_per_chunk: int, d_model: int) -> npt.NDArray[np.float32]:
    into_LRD = np.empty((1, rows_per_chunk, d_model), dtype=np.float32)
    decode_chunks(data, [len(data)], into_LRD)
    return into_LRD[0]


DECODERS = pytest.mark.parametrize("decode", [decode_chunk, decode_as_one_of_several])
Decode = Callable[[bytes, int, int], npt.NDArray[np.float32]]


def test_adjacent_chunks_decode_to_what_each_alone_does():
    block = encoded(normal_block(6, 5, 8), 6, 10)
    ends = np.cumsum([0, *block.chunk_bytes]).tolist()
    into_LRD = np.empty((3, 6, 8), dtype=np.float32)
    decode_chunks(memoryview(block.data)[ends[1] : ends[4]], block.chunk_bytes[1:4], into_LRD)
    for layer, found_RD in enumerate(into_LRD, start=1):
        np.testing.assert_array_equal(found_RD, decode_chunk(block.data[ends[layer] : ends[layer + 1]], 6, 8))
    with pytest.raises(ValueError):
        decode_chunks(block.data[ends[1] : ends[4]], block.chunk_bytes[:3], into_LRD)


@DECODERS
def test_a_chunk_with_any_bit_flipped_or_any_byte_missing_is_refused(decode: Decode):
    block = encoded(normal_block(2, 1, 8), 2, 10)
    chunk = block.data[: block.chunk_bytes[0]]
    np.testing.assert_array_equal(decode(chunk, 2, 8), decode_chunk(chunk, 2, 8))
    for damaged in [*flips(chunk), *(chunk[:length] for length in range(len(chunk))), chunk + b"x"]:
        with pytest.raises(ValueError):
            decode(damaged, 2, 8)


@DECODERS
@pytest.mark.parametrize("body", [b"", b"x", b"four", b"no blosc frame at all, and yet its checksum is right"])
def test_bytes_that_are_no_chunk_are_refused_though_their_checksum_is_right(decode: Decode, body: bytes):
    with pytest.raises(ValueError):
        decode(body + google_crc32c.value(body).to_bytes(4, "little"), 2, 8)


@DECODERS
@pytest.mark.parametrize("d_model", [7, 9])
def test_a_chunk_of_another_shape_is_refused(decode: Decode, d_model: int):
    block = encoded(normal_block(2, 1, 8), 2, 10)
    with pytest.raises(ValueError):
        decode(block.data[: block.chunk_bytes[0]], 2, d_model)


def test_an_index_with_any_bit_flipped_or_any_byte_missing_is_refused():
    block = encoded(normal_block(2, 3, 8), 2, 10)
    index_bytes = len(block.data) - sum(block.chunk_bytes)
    chunks, index = block.data[:-index_bytes], block.data[-index_bytes:]
    assert decode_chunk_lengths(block.data, 3) == block.chunk_bytes
    for damaged in [*flips(index), *(index[:length] for length in range(index_bytes))]:
        with pytest.raises(ValueError):
            decode_chunk_lengths(chunks + damaged, 3)
    for damaged in (b"", index[1:], index[-4:]):
        with pytest.raises(ValueError):
            decode_chunk_lengths(damaged, 3)


def test_chunks_that_do_not_follow_one_another_are_refused():
    index = np.array([[0, 10], [11, 10]], dtype="<u8").tobytes()
    with pytest.raises(ValueError, match="follow"):
        decode_chunk_lengths(b"x" * 21 + index + google_crc32c.value(index).to_bytes(4, "little"), 2)


@pytest.mark.parametrize("keep", [7, 10])
def test_encoding_takes_less_than_twice_the_blocks_own_memory(keep: int):
    values = normal_block(48, 24, 512)
    encode_shard(values, 48, keep)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        block = encoded(values, 48, keep)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before >= len(block.data), "or what is counted is not what is allocated"
    assert peak - before < 2 * values.nbytes


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.finfo(np.float32).max])
def test_a_number_that_is_or_becomes_infinite_is_refused(value: float):
    values = np.ones((2, 2, 4), dtype=np.float32)
    values[1, 0, 3] = value
    with pytest.raises(UnitError) as caught:
        encode_shard(values, 2, 10)
    assert caught.value.code == "overflow"


def test_numbers_beyond_float16_are_kept():
    values = np.full((1, 1, 8), 300_000.0, dtype=np.float32)
    assert np.isfinite(round_mantissa(values, 10)).all()
    assert encode_shard(values, 1, 10)


def test_a_block_without_a_single_number_makes_no_object():
    assert encode_shard(np.full((3, 2, 8), np.nan, dtype=np.float32), 4, 10) is None


@pytest.mark.parametrize(("keep", "bytes_per_value"), [(7, 1.8), (10, 2.2), (23, 4.1)])
def test_a_value_takes_about_as_many_bytes_as_planned(keep: int, bytes_per_value: float):
    values = normal_block(48, 4, 1024)
    assert 1.0 < len(encoded(values, 48, keep).data) / values.size < bytes_per_value


def test_rows_that_a_short_unit_leaves_empty_cost_little():
    values = normal_block(8, 2, 256)
    assert len(encoded(values, 240, 10).data) < 1.3 * len(encoded(values, 8, 10).data)
