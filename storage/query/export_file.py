"""Export a query to a file in a format chosen by its extension, part by part, so that it may be larger than memory.

A file appears complete or not at all. Formats that hold only numbers get a table of their rollouts in a second file.
Per-token activations have a varying number of rows per rollout, so they need a format with room for ``offsets``;
``.npy`` has none.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...jobs.errors import InputError
from ...jobs.machine_faults import refuse_machine_fault
from ...jobs.poolings import keeps_tokens
from .run import Query


def write_query(query: Query, path: Path) -> list[Path]:
    """Read a query and write it to a file.

    ``.npy`` and ``.safetensors`` hold numbers only, so the table of rollouts is written to ``<name>.rollouts.parquet``.
    ``.npz`` contains its columns, and ``.parquet`` is that table with a column ``activations`` of lists. Per-token
    activations are those of all rollouts, concatenated, with an array ``offsets``; in ``.parquet`` each line has a list
    of vectors.

    Args:
        query: The query.
        path: File to write; its extension must be one of ``FORMATS``.

    Returns:
        The paths of the files that were written.

    Raises:
        InputError: The extension is unknown, the format cannot hold the result, or the file cannot be written.
        StoreError: A committed shard is missing or damaged.
    """
    check_target(path, query.pooling)
    try:
        return FORMATS[path.suffix](query, path)
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}.",
            code="not_writable",
            field="--out",
            hint="Choose another path.",
        ) from error


def check_target(path: Path, pooling: str) -> None:
    """Raise, before anything is read, if a file could not be written.

    Args:
        path: File to write.
        pooling: Pooling of the activations to be written.

    Raises:
        InputError: The extension is unknown, its format cannot hold that pooling, or the folder does not exist.
    """
    if path.suffix not in FORMATS:
        raise InputError(
            f"{path.suffix or path.name!r} is not a supported file format.",
            code="unknown_format",
            field="--out",
            hint=f"Use one of {', '.join(FORMATS)}.",
        )
    if keeps_tokens(pooling) and path.suffix == ".npy":
        raise InputError(
            "a .npy file holds one array, without the offsets that say which tokens belong to which rollout.",
            code="unknown_format",
            field="--out",
            hint=f"Use one of {', '.join(suffix for suffix in FORMATS if suffix != '.npy')}.",
        )
    if not path.parent.is_dir():
        raise InputError(
            f"there is no folder {str(path.parent)!r}.", code="no_folder", field="--out", hint="Create it first."
        )


@contextmanager
def _atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that is renamed to ``path`` when it is complete, and deleted after an error."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _values(query: Query) -> Iterator[bytes]:
    for _, values in query.blocks():
        yield np.ascontiguousarray(values, dtype="<f4").tobytes()


def _remove_old_rollouts(path: Path) -> None:
    """Delete the rollouts of an earlier export first, so that an interrupted one never pairs them with other values."""
    path.with_suffix(".rollouts.parquet").unlink(missing_ok=True)


def _write_rollouts(query: Query, path: Path) -> Path:
    beside = path.with_suffix(".rollouts.parquet")
    with _atomic_file(beside) as file:
        pq.write_table(query.rollouts, file)
    return beside


def _npy(query: Query, path: Path) -> list[Path]:
    _remove_old_rollouts(path)
    with _atomic_file(path) as file:
        _write_npy(query, file)
    return [path, _write_rollouts(query, path)]


def _write_npy(query: Query, file: IO[bytes]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": query.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for data in _values(query):
        file.write(data)


def _npz(query: Query, path: Path) -> list[Path]:
    columns: dict[str, Any] = {name: _column(query.rollouts, name) for name in query.rollouts.column_names}
    columns["layers"] = np.array(query.layers)
    if query.offsets is not None:
        columns["offsets"] = query.offsets
    with _atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("activations.npy", "w", force_zip64=True) as member:
            _write_npy(query, member)
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return [path]


def _column(rollouts: pa.Table, name: str) -> np.ndarray:
    is_text = pa.types.is_string(rollouts.schema.field(name).type)
    return np.array(rollouts[name].to_pylist(), dtype=str) if is_text else rollouts[name].to_numpy()


def _safetensors(query: Query, path: Path) -> list[Path]:
    # A safetensors file is the header's length, a JSON header and the bytes. The safetensors library writes tensors
    # that are in memory only, hence written by hand.
    end = 4 * math.prod(query.shape)
    offsets = b"" if query.offsets is None else query.offsets.astype("<i8").tobytes()
    header: dict[str, Any] = {
        "__metadata__": {"layers": ",".join(str(layer) for layer in query.layers)},
        "activations": {"dtype": "F32", "shape": query.shape, "data_offsets": [0, end]},
    }
    if query.offsets is not None:
        places = [end, end + len(offsets)]
        header["offsets"] = {"dtype": "I64", "shape": query.offsets.shape, "data_offsets": places}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    _remove_old_rollouts(path)
    with _atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for data in _values(query):
            file.write(data)
        file.write(offsets)
    return [path, _write_rollouts(query, path)]


def _parquet(query: Query, path: Path) -> list[Path]:
    width = math.prod(query.shape[1:])
    vector = pa.list_(pa.float32(), width)
    schema = query.rollouts.schema.append(
        pa.field("activations", vector if query.offsets is None else pa.list_(vector))
    )
    with _atomic_file(path) as file, pq.ParquetWriter(file, schema) as writer:
        for lines, values in query.blocks():
            lists: pa.Array = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
            if query.offsets is not None:
                ends = np.cumsum(lines["num_content_tokens"].to_numpy(), dtype=np.int32)
                lists = pa.ListArray.from_arrays(np.concatenate([np.zeros(1, np.int32), ends]), lists)
            writer.write_table(lines.append_column(schema.field("activations"), lists))
    return [path]


FORMATS: dict[str, Callable[[Query, Path], list[Path]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}
"""Writers by file extension; each returns the paths that it wrote."""
