"""How numbers become bytes: mantissas rounded, then standard Zarr v3 codecs that any reader knows.

The rounding happens before Zarr sees the values, and the codecs in the array's metadata (sharding, bytes, blosc,
crc32c) are in the Zarr v3 core and its registered extensions, so a store opens without this package.
Axes: R rows of a block, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import BitRound
from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec
from zarr.storage import MemoryStore

from ..jobs.errors import UnitError

Float32 = npt.NDArray[np.float32]


def create_array(
    store: Store,
    path: str,
    *,
    num_rows: int,
    rows_per_block: int,
    layers: Sequence[int],
    d_model: int,
    mantissa_bits: int,
) -> zarr.Array:
    """Create an activation array: a shard per row block, a chunk per layer in it, NaN where nothing is.

    Args:
        store: Where.
        path: The array's path in it.
        num_rows: First dimension; may grow later.
        rows_per_block: Rows of a shard.
        layers: The captured blocks that the second dimension stands for.
        d_model: Third dimension.
        mantissa_bits: Kept of 23; recorded in the attributes.
    """
    return zarr.create_array(
        store,
        name=path or None,
        shape=(num_rows, len(layers), d_model),
        chunks=(rows_per_block, 1, d_model),
        shards=(rows_per_block, len(layers), d_model),
        dtype="float32",
        fill_value=float("nan"),
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.shuffle), Crc32cCodec()],
        dimension_names=["row", "layer", "d_model"],
        attributes={"layers": list(layers), "mantissa_bits": mantissa_bits},
    )


def encode_block(values_BLD: Float32, rows_per_block: int, mantissa_bits: int) -> bytes:
    """Encode one row block as the object that Zarr would write for it.

    Args:
        values_BLD: float32 of at most ``rows_per_block`` rows; NaN only in whole rows that have no vector.
        rows_per_block: Rows of the shard; missing rows are filled with NaN.
        mantissa_bits: Kept of 23.

    Raises:
        UnitError: A value is infinite, or becomes so by rounding; nothing is encoded.
    """
    num_rows, num_layers, d_model = values_BLD.shape
    block = np.full((rows_per_block, num_layers, d_model), np.nan, dtype=np.float32)
    block[:num_rows] = values_BLD
    rounded = round_mantissa(block, mantissa_bits)
    if np.isinf(rounded).any():
        raise UnitError("an activation overflows float32.", code="overflow")
    objects: dict[str, Buffer] = {}
    array = create_array(
        MemoryStore(objects),
        "",
        num_rows=rows_per_block,
        rows_per_block=rows_per_block,
        layers=range(num_layers),
        d_model=d_model,
        mantissa_bits=mantissa_bits,
    )
    array[...] = rounded
    shard = objects.get("c/0/0/0")
    if shard is None:
        # Zarr leaves out a shard of nothing but the fill value: every response of the unit was empty.
        return b""
    return shard.to_bytes()


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
