"""The record of a store that holds imported vectors and no run: ``vectors.json``."""

from __future__ import annotations

from .layout import LAYOUT_VERSION
from .records import StoredObject
from .sealed import Sealed


class VectorsRecord(Sealed):
    """Where imported vectors come from. Written once, after the vectors, and never changed.

    Attributes:
        layout_version: Version of the store's layout.
        model: Name of the model that the vectors belong to, as the source or the user gives it.
        n_layers: Decoder layers of the model; the last layer of the vectors plus one where no source tells it.
        d_model: Width of the residual stream.
        source: Format that they were read from: ``assistant-axis``, ``safetensors`` or ``gguf``.
        files: Files that they were read from, with their paths in the directory.
        notes: Sentences about what the files do not have or do not agree on.
        created_at: When they were imported: ISO 8601, in UTC.
    """

    layout_version: int
    model: str
    n_layers: int
    d_model: int
    source: str
    files: tuple[StoredObject, ...]
    notes: tuple[str, ...]
    created_at: str

    @classmethod
    def of(
        cls,
        *,
        model: str,
        n_layers: int,
        d_model: int,
        source: str,
        files: tuple[StoredObject, ...],
        notes: tuple[str, ...],
        created_at: str,
    ) -> VectorsRecord:
        """Make a sealed record of the present layout."""
        return cls.sealed(
            layout_version=LAYOUT_VERSION,
            model=model,
            n_layers=n_layers,
            d_model=d_model,
            source=source,
            files=files,
            notes=notes,
            created_at=created_at,
        )
