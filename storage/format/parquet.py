"""Arrow tables as Parquet files with checksums. Knows nothing of what the tables hold."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table) -> bytes:
    """Encode a table as a Parquet file with zstd and a CRC per page."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode a Parquet file and check its page CRCs; all columns when ``columns`` is None."""
    wanted = list(columns) if columns is not None else None
    # In the calling thread alone. Arrow's own threads drop their last reference to the bytes some time after the read;
    # if the interpreter is shutting down by then, they may not take the GIL and the process aborts with status 134.
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False)
    return file.read(columns=wanted, use_threads=False)
