"""Write a query's answer to a file, by its extension, with its rollouts beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from ..jobs.errors import InputError
from .query import Activations


def write_activations(found: Activations, path: Path) -> list[Path]:
    """Write activations and say which files were written.

    ``.npy`` and ``.safetensors`` hold numbers only, so the rollouts go to ``<name>.rollouts.parquet`` beside; ``.npz``
    holds the address columns too; ``.parquet`` is one table with a column of lists.

    Args:
        found: A query's answer.
        path: Where; nothing is written when its extension is not one of ``FORMATS``.

    Raises:
        InputError: The extension is unknown, or the file cannot be written.
    """
    check_target(path)
    try:
        return FORMATS[path.suffix](found, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}.",
            code="not_writable",
            field="--out",
            mend="Choose another place.",
        ) from error


def check_target(path: Path) -> None:
    """Make sure, before anything is read, that a file could be written.

    Raises:
        InputError: The extension is unknown, or the folder is not there.
    """
    if path.suffix not in FORMATS:
        raise InputError(
            f"{path.suffix or path.name!r} is not a format known here.",
            code="unknown_format",
            field="--out",
            mend=f"Use one of {', '.join(FORMATS)}.",
        )
    if not path.parent.is_dir():
        raise InputError(
            f"there is no folder {str(path.parent)!r}.", code="no_folder", field="--out", mend="Make it first."
        )


def _rollouts_beside(found: Activations, path: Path) -> Path:
    beside = path.with_suffix(".rollouts.parquet")
    pq.write_table(found.rollouts, beside)
    return beside


def _npy(found: Activations, path: Path) -> list[Path]:
    np.save(path, found.values)
    return [path, _rollouts_beside(found, path)]


def _safetensors(found: Activations, path: Path) -> list[Path]:
    layers = ",".join(str(layer) for layer in found.layers)
    # Not save_file: it makes files that only their owner may read.
    path.write_bytes(save({"activations": np.ascontiguousarray(found.values)}, metadata={"layers": layers}))
    return [path, _rollouts_beside(found, path)]


def _npz(found: Activations, path: Path) -> list[Path]:
    columns = {
        name: np.asarray(
            found.rollouts[name].to_pylist(),
            dtype=str if pa.types.is_string(found.rollouts.schema.field(name).type) else None,
        )
        for name in found.rollouts.column_names
    }
    contents: dict[str, Any] = {"activations": found.values, "layers": np.array(found.layers), **columns}
    np.savez(path, **contents)
    return [path]


def _parquet(found: Activations, path: Path) -> list[Path]:
    # Not reshape(n, -1): that cannot be told when nothing was found.
    flat = found.values.reshape(found.values.shape[0], math.prod(found.values.shape[1:]))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    pq.write_table(found.rollouts.append_column("activations", lists), path)
    return [path]


FORMATS: dict[str, Callable[[Activations, Path], list[Path]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}
"""Writers by extension."""
