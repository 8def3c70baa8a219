"""Encode activations as Zarr v3 shards, and decode their inner chunks.

Values are rounded to a number of mantissa bits first; then the codecs of the array's metadata apply (sharding, bytes,
blosc, crc32c), all of them standard Zarr v3, so that any Zarr reader opens a store. Rounding is not a codec: it changes
values once, before they are encoded.

Shards are assembled here and not by Zarr. Zarr's writer takes the whole array, holds four more copies of the shard
while it encodes it, and does not return the lengths of the inner chunks, which the commit record needs; here one layer
is rounded, compressed and checksummed at a time. The format is Zarr's own, byte for byte where a layer is a single
inner chunk:

    inner chunk (layer 0, rows 0..R) | inner chunk (layer 0, rows R..2R) | ... | inner chunk (layer L-1, ...) | index

An inner chunk is the blosc frame of float32 ``(R, D)`` in little-endian order, then the crc32c of that frame (4 bytes).
The index has one pair (offset, length) of uint64 per inner chunk of a full shard, in C order of ``(C, L)``, then the
crc32c of the index. Zarr fixes the index, but leaves the order of the inner chunks open; layer after layer makes all
rows of adjacent layers one byte range.

Axes: R rows of an inner chunk, B rows of a shard that are filled, C inner chunks of a layer, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import BitRound, Blosc
from numcodecs.blosc import decompress
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from ...jobs.errors import UnitError

Float32 = npt.NDArray[np.float32]

# After a bit shuffle lz4 compresses these values as well as zstd does and decodes more than twice as fast
# (measurements: docs/store.md). A blosc frame names its own compressor, so a change here leaves older stores readable.
_LEVEL = 9
_BLOSC = Blosc(cname="lz4", clevel=_LEVEL, shuffle=Blosc.BITSHUFFLE)
_CHECKSUM_BYTES = 4
_HEADER_BYTES = 16
"""Header of a blosc frame; its bytes 4 to 8 are the number of bytes that it decodes to."""
_BAD_CHECKSUM = "its checksum does not match its bytes"
_NO_FRAME = "it does not decode to the values of a chunk"
_MISSING_CHUNK = np.uint64(2**64 - 1)
"""Offset and length that the shard index has for an inner chunk that is not stored; it reads as the fill value."""


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
    """Create an activation array ``(num_rows, L, D)`` of float32 with fill value NaN, one shard per row block.

    Args:
        store: Zarr store to create it in.
        path: Path of the array in the store.
        num_rows: Initial length of the first axis; ``resize`` may lengthen it later.
        rows_per_block: Rows of a shard.
        layers: Decoder layers along the second axis, 0-based; stored as the attribute ``layers``.
        d_model: Length of the third axis.
        mantissa_bits: Mantissa bits that values are rounded to, of 23; stored as an attribute.
        rows_per_chunk: Rows of an inner chunk; ``rows_per_block`` when None.
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
    """An encoded shard.

    Attributes:
        data: Bytes of the object: inner chunks from byte 0, layer by layer, then the shard index.
        chunk_bytes: Length of each inner chunk in bytes, in that order, with the same number of chunks for each layer.
            A reader that has them needs no request for the shard index.
    """

    data: bytes
    chunk_bytes: tuple[int, ...]


def encode_shard(
    values_BLD: Float32, rows_per_block: int, mantissa_bits: int, rows_per_chunk: int | None = None
) -> EncodedShard | None:
    """Encode one row block as a shard.

    Args:
        values_BLD: float32 ``(B, L, D)`` with B <= ``rows_per_block``; rows without a vector are NaN throughout.
        rows_per_block: Rows of the shard. Rows from B on read as NaN; inner chunks without any row are not stored.
        mantissa_bits: Mantissa bits to keep, of 23.
        rows_per_chunk: Rows of an inner chunk, a divisor of ``rows_per_block``; ``rows_per_block`` when None.

    Returns:
        The shard; None when every value is NaN, for then Zarr stores no object either.

    Raises:
        UnitError: A value is infinite, or rounding makes it so.
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
    """Encode the shard index, as Zarr's sharding codec defines it.

    Its entries are in the order of the chunk grid ``(C, L)``, rows first, whereas the chunks themselves are stored
    layer by layer; and it has an entry for every inner chunk of a full shard, stored or not.
    """
    lengths_LC = np.array(chunk_bytes, dtype=np.uint64).reshape(num_layers, -1)
    starts_LC = (np.cumsum(lengths_LC) - lengths_LC.ravel()).reshape(lengths_LC.shape)
    index_CL2 = np.full((chunks_per_block, num_layers, 2), _MISSING_CHUNK, dtype="<u8")
    index_CL2[: lengths_LC.shape[1]] = np.stack([starts_LC.T, lengths_LC.T], axis=2)
    return _with_checksum(index_CL2.tobytes())


def decode_chunk(data: bytes | memoryview, rows_per_chunk: int, d_model: int) -> Float32:
    """Decode one inner chunk.

    Args:
        data: Its bytes in the shard, checksum included.
        rows_per_chunk: R.
        d_model: D.

    Returns:
        float32 ``(R, D)``, read-only.

    Raises:
        ValueError: The checksum does not match, or the bytes do not decode to that shape.
    """
    # An array over the bytes, because the checksum takes no memoryview; nothing is copied.
    body = np.frombuffer(data, dtype=np.uint8)[:-_CHECKSUM_BYTES]
    if google_crc32c.value(body) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise ValueError(_BAD_CHECKSUM)
    if len(body) < _HEADER_BYTES:
        raise ValueError(_NO_FRAME)
    try:
        values = np.frombuffer(decompress(body), dtype="<f4")
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return values.reshape(rows_per_chunk, d_model)


def decode_chunks(data: bytes | memoryview, lengths: Sequence[int], into_LRD: Float32) -> None:
    """Decode inner chunks that follow one another, one of each layer.

    Args:
        data: Their bytes in the shard.
        lengths: Length of each in bytes, checksum included.
        into_LRD: Contiguous array to decode into; what it holds after an error is of no use.

    Raises:
        ValueError: A checksum does not match, or the bytes do not decode to that shape.
    """
    # Threads that decode take turns at Python's lock between chunks, so that little is done there.
    frames, end = np.frombuffer(data, dtype=np.uint8), 0
    num_bytes = into_LRD[0].nbytes
    try:
        for into_RD, length in zip(into_LRD, lengths, strict=True):
            begin, end = end, end + length
            body = frames[begin : end - _CHECKSUM_BYTES]
            if google_crc32c.value(body) != int.from_bytes(data[end - _CHECKSUM_BYTES : end], "little"):
                raise ValueError(_BAD_CHECKSUM)
            # Of fewer values than there is room for, blosc writes those and says nothing.
            if len(body) < _HEADER_BYTES or int.from_bytes(data[begin + 4 : begin + 8], "little") != num_bytes:
                raise ValueError(_NO_FRAME)
            decompress(body, into_RD)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def decode_chunk_lengths(shard: bytes, num_layers: int, chunks_per_block: int = 1) -> tuple[int, ...]:
    """Decode a shard's index, and check that its inner chunks follow one another from byte 0, layer by layer.

    Args:
        shard: Bytes of the whole object.
        num_layers: L.
        chunks_per_block: C of a full shard.

    Returns:
        Length of each stored inner chunk in bytes, layer by layer.

    Raises:
        ValueError: The index is damaged, or the chunks are in another order or have gaps.
    """
    index = shard[-(16 * num_layers * chunks_per_block + _CHECKSUM_BYTES) :]
    body, checksum = index[:-_CHECKSUM_BYTES], index[-_CHECKSUM_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise ValueError("the checksum of its index does not match")
    index_CL2 = np.frombuffer(body, dtype="<u8").reshape(chunks_per_block, num_layers, 2)
    is_stored_C = (index_CL2 != _MISSING_CHUNK).all(axis=(1, 2))
    present, absent = index_CL2[: is_stored_C.sum()], index_CL2[is_stored_C.sum() :]
    starts, lengths = present.transpose(2, 1, 0).reshape(2, -1)
    if (absent != _MISSING_CHUNK).any() or not np.array_equal(np.cumsum(lengths) - lengths, starts):
        raise ValueError("its chunks do not follow one another")
    return tuple(int(length) for length in lengths)


def _with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(_CHECKSUM_BYTES, "little")


def round_mantissa(values: Float32, mantissa_bits: int) -> Float32:
    """Round float32 values to a number of mantissa bits, to nearest, ties to even; NaN and infinities are kept.

    Example:
        >>> round_mantissa(np.array([1.0009765, 1.0], dtype=np.float32), 8).tolist()
        [1.0, 1.0]
    """
    if mantissa_bits == 23:
        return values
    encoded = BitRound(keepbits=mantissa_bits).encode(np.ascontiguousarray(values))
    rounded = np.asarray(encoded).view(np.float32).reshape(values.shape)
    # BitRound adds half a unit in the last kept place. In a NaN whose mantissa is all ones, as CUDA makes them, that
    # carries into exponent and sign, and gives -0.
    return np.where(np.isnan(values), np.float32(np.nan), rounded)
