"""How numbers become bytes: mantissas rounded, then standard Zarr v3 codecs that any reader knows.

The rounding happens before Zarr sees the values, and the codecs in the array's metadata (sharding, bytes, blosc,
crc32c) are in the Zarr v3 core and its registered extensions, so a store opens without this package. A shard is put
together here, a layer at a time, because Zarr's own writer holds four more copies of it; its tests hold it to Zarr's.
Axes: R rows of a chunk, B rows of a block that are filled, C chunks of a layer, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import BitRound, Blosc
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from ...jobs.errors import UnitError

Float32 = npt.NDArray[np.float32]

# As small as zstd makes them and read more than twice as fast (docs/store.md). What a chunk was written with stands in
# it, so a change here leaves older stores readable.
_LEVEL = 9
_BLOSC = Blosc(cname="lz4", clevel=_LEVEL, shuffle=Blosc.BITSHUFFLE)
_CHECKSUM_BYTES = 4
_ABSENT = np.uint64(2**64 - 1)
"""What a shard's index says, twice, of a chunk that is not there."""


def create_array(
    store: Store,
    path: str,
    *,
    num_rows: int,
    rows_per_block: int,
    layers: Sequence[int],
    d_model: int,
    mantissa_bits: int,
    rows_per_chunk: int | None = None,
) -> zarr.Array:
    """Create an activation array: a shard per row block, chunks of one layer each in it, NaN where nothing is.

    Args:
        store: Where.
        path: The array's path in it.
        num_rows: First dimension; may grow later.
        rows_per_block: Rows of a shard.
        layers: The captured blocks that the second dimension stands for.
        d_model: Third dimension.
        mantissa_bits: Kept of 23; recorded in the attributes.
        rows_per_chunk: Rows of a chunk; all of a shard's when None.
    """
    return zarr.create_array(
        store,
        name=path or None,
        shape=(num_rows, len(layers), d_model),
        chunks=(rows_per_chunk or rows_per_block, 1, d_model),
        shards=(rows_per_block, len(layers), d_model),
        dtype="float32",
        fill_value=float("nan"),
        compressors=[BloscCodec(cname="lz4", clevel=_LEVEL, shuffle=BloscShuffle.bitshuffle), Crc32cCodec()],
        dimension_names=["row", "layer", "d_model"],
        attributes={"layers": list(layers), "mantissa_bits": mantissa_bits},
    )


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """A shard object.

    Attributes:
        data: Its bytes: the chunks of one layer after those of another from the start, then the index of them.
        chunk_bytes: Length of each chunk in that order, so that a layer can be fetched without asking for the index
            first; every layer has equally many.
    """

    data: bytes
    chunk_bytes: tuple[int, ...]


def encode_shard(
    values_BLD: Float32, rows_per_block: int, mantissa_bits: int, rows_per_chunk: int | None = None
) -> EncodedShard | None:
    """Encode one row block as an object that Zarr reads, and would write itself where a layer is one chunk.

    Args:
        values_BLD: float32 of at most ``rows_per_block`` rows; NaN only in whole rows that have no vector.
        rows_per_block: Rows of the shard; missing rows are filled with NaN, missing chunks left out.
        mantissa_bits: Kept of 23.
        rows_per_chunk: Rows of a chunk, of which a shard holds whole ones; all of the shard's when None.

    Returns:
        None when there is no number at all: then Zarr keeps no object either.

    Raises:
        UnitError: A value is infinite, or becomes so by rounding; nothing is encoded.
    """
    num_rows, num_layers, d_model = values_BLD.shape
    if np.isnan(values_BLD).all():
        return None
    step = rows_per_chunk or rows_per_block
    chunk_RD = np.empty((step, d_model), dtype=np.float32)
    chunks: list[bytes] = []
    for layer in range(num_layers):
        for start in range(0, num_rows, step):
            filled = min(step, num_rows - start)
            chunk_RD[:filled], chunk_RD[filled:] = values_BLD[start : start + filled, layer], np.nan
            rounded_RD = round_mantissa(chunk_RD, mantissa_bits)
            if np.isinf(rounded_RD).any():
                raise UnitError(f"captured layer {layer}: an activation overflows float32.", code="overflow")
            chunks.append(_with_checksum(_BLOSC.encode(rounded_RD)))
    chunk_bytes = tuple(len(chunk) for chunk in chunks)
    chunks.append(_index(chunk_bytes, num_layers, rows_per_block // step))
    return EncodedShard(b"".join(chunks), chunk_bytes)


def _index(chunk_bytes: Sequence[int], num_layers: int, chunks_per_block: int) -> bytes:
    """Write a shard's own index, which goes by rows first and has a line for chunks that are not there."""
    lengths_LC = np.array(chunk_bytes, dtype=np.uint64).reshape(num_layers, -1)
    starts_LC = (np.cumsum(lengths_LC) - lengths_LC.ravel()).reshape(lengths_LC.shape)
    index_CL2 = np.full((chunks_per_block, num_layers, 2), _ABSENT, dtype="<u8")
    index_CL2[: lengths_LC.shape[1]] = np.stack([starts_LC.T, lengths_LC.T], axis=2)
    return _with_checksum(index_CL2.tobytes())


def decode_chunk(data: bytes, rows_per_chunk: int, d_model: int) -> Float32:
    """Decode one chunk of a shard: float32 ``(R, D)``, read-only.

    Raises:
        ValueError: Its checksum does not match, or it is not such a chunk.
    """
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise ValueError("its checksum does not match its bytes")
    try:
        values = np.frombuffer(_BLOSC.decode(body), dtype="<f4")
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return values.reshape(rows_per_chunk, d_model)


def decode_chunk_lengths(shard: bytes, num_layers: int, chunks_per_block: int = 1) -> tuple[int, ...]:
    """Read a shard's own index, and make sure that its chunks follow one another from the start, layer by layer.

    Raises:
        ValueError: The index is damaged, or the chunks lie otherwise.
    """
    index = shard[-(16 * num_layers * chunks_per_block + _CHECKSUM_BYTES) :]
    body, checksum = index[:-_CHECKSUM_BYTES], index[-_CHECKSUM_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise ValueError("the checksum of its index does not match")
    index_CL2 = np.frombuffer(body, dtype="<u8").reshape(chunks_per_block, num_layers, 2)
    is_there_C = (index_CL2 != _ABSENT).all(axis=(1, 2))
    present, absent = index_CL2[: is_there_C.sum()], index_CL2[is_there_C.sum() :]
    starts, lengths = present.transpose(2, 1, 0).reshape(2, -1)
    if (absent != _ABSENT).any() or not np.array_equal(np.cumsum(lengths) - lengths, starts):
        raise ValueError("its chunks do not follow one another")
    return tuple(int(length) for length in lengths)


def _with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(_CHECKSUM_BYTES, "little")


def round_mantissa(values: Float32, mantissa_bits: int) -> Float32:
    """Round float32 to a number of mantissa bits, to nearest, ties to even; NaN and infinities stay.

    Example:
        >>> round_mantissa(np.array([1.0009765, 1.0], dtype=np.float32), 8).tolist()
        [1.0, 1.0]
    """
    if mantissa_bits == 23:
        return values
    encoded = BitRound(keepbits=mantissa_bits).encode(np.ascontiguousarray(values))
    rounded = np.asarray(encoded).view(np.float32).reshape(values.shape)
    # A NaN whose mantissa is all ones, as CUDA makes them, rounds to -0.
    return np.where(np.isnan(values), np.float32(np.nan), rounded)
