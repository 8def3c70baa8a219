"""What a reader of shared vectors found, and the checks that all readers share. Knows no format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError
from ...jobs.files.names import name_problem
from ...jobs.machine_faults import refuse_machine_fault
from ...storage.derived.reductions import Reduction
from ...storage.format.records import StoredObject


@dataclass(frozen=True)
class Imported:
    """Vectors that were read from files.

    Attributes:
        reduction: The vectors.
        source: Format of the files.
        model: Name of the model, if the files have one; else empty.
        n_layers: Decoder layers of the model; the last layer of the vectors plus one where the files do not say it.
        d_model: Width of the residual stream.
        files: The files, with their paths in the directory.
        notes: Sentences about what the files do not have or do not agree on.
        capping_config: Content of ``capping_config.pt`` to keep as it is; None if there is none.
    """

    reduction: Reduction
    source: str
    model: str
    n_layers: int
    d_model: int
    files: tuple[StoredObject, ...]
    notes: tuple[str, ...] = ()
    capping_config: bytes | None = None


def facts_of_published(source: str) -> dict[str, Any]:
    """Return what is known of published vectors: the released code pools over the response, after the MLP of a layer.

    Args:
        source: Format of the files.
    """
    chosen = "chosen by those who published the vectors"
    return {
        "imported": source,
        "hook_point": "resid_post",
        "pooling": "response_mean",
        "rollout_filter": chosen,
        "role_filter": chosen,
        "trait_kind": chosen,
        "judge": None,
        "units": 0,
        "units_planned": 0,
        "rollouts": 0,
    }


class Files:
    """Files of a directory that are read once each, with their sizes and checksums.

    Args:
        root: The directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.read_so_far: list[StoredObject] = []

    def read(self, name: str) -> bytes:
        """Read a file.

        Args:
            name: Path in the directory.

        Raises:
            InputError: It is missing or cannot be read.
        """
        with self._opened(name) as file:
            data = file.read()
        self.read_so_far.append(StoredObject.of(name, data))
        return data

    def add(self, name: str) -> None:
        """Note the size and checksum of a file that is too large to read at once, and is read by other means.

        Args:
            name: Path in the directory.

        Raises:
            InputError: It is missing or cannot be read.
        """
        with self._opened(name) as file:
            digest = file_digest(file, "sha256").hexdigest()
            num_bytes = file.tell()
        self.read_so_far.append(StoredObject(path=name, num_bytes=num_bytes, sha256=digest))

    @contextmanager
    def _opened(self, name: str) -> Iterator[BufferedReader]:
        path = self.root / name
        try:
            with path.open("rb") as file:
                yield file
        except FileNotFoundError:
            raise InputError(
                f"there is no {name}.",
                code="missing_file",
                file=str(path),
                hint="A released directory has assistant_axis.pt, default_vector.pt and role_vectors/.",
            ) from None
        except OSError as error:
            refuse_machine_fault(error)
            raise InputError(
                f"cannot be read: {error.strerror or error}.", code="unreadable_file", file=str(path)
            ) from error

    @property
    def digest(self) -> str:
        """An id of the content that was read so far: 16 hexadecimal digits."""
        return sha256("".join(f"{file.path}\n{file.sha256}\n" for file in self.read_so_far).encode()).hexdigest()[:16]


def require_vector_name(name: str, path: Path) -> str:
    """Return the name of a persona that a file's name gives.

    Raises:
        InputError: It cannot be part of the name of a file everywhere.
    """
    problem = name_problem(name)
    if problem:
        raise InputError(f"the name {name[:60]!r} {problem}.", code="bad_name", file=str(path), hint="Rename the file.")
    return name


def require_finite(values_LD: npt.NDArray[np.floating], layers: tuple[int, ...], path: Path, what: str) -> None:
    """Raise unless all numbers of vectors are finite.

    Args:
        values_LD: ``(..., L, D)``.
        layers: Layers along L.
        path: File that holds them.
        what: What they are, for the message.

    Raises:
        InputError: One is NaN or infinite; names the layers.
    """
    is_bad_L = np.asarray(~np.isfinite(values_LD).all(axis=-1).reshape(-1, len(layers)).all(axis=0))
    if is_bad_L.any():
        bad = [layer for layer, is_bad in zip(layers, is_bad_L, strict=True) if is_bad]
        raise InputError(
            f"{what} is NaN or infinite at layer{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad[:8]))}.",
            code="not_finite",
            file=str(path),
            hint="Fetch the file again, or compute the vectors again.",
        )
