"""The vectors of a store, whether it is a run with a reduction or vectors that were imported."""

from __future__ import annotations

import os
from functools import cached_property

from ...jobs.errors import InputError, StoreError
from ...jobs.specs.store_spec import S3Access
from ..derived.reductions import Reduction, read_current_reduction
from ..derived.vector_sets import read_vectors_record
from ..format import layout
from ..format.vectors_record import VectorsRecord
from ..locations.location import Location, open_location
from .query import nearest_layer
from .run import Run, open_run


class VectorSet:
    """Imported vectors opened for reading. Make one with ``open_vectors``.

    It has the members of ``Run`` that are about the model and its vectors.

    Attributes:
        location: The store.
        record: Where the vectors come from.

    Example:
        >>> from persona_atlas import VectorSet, open_vectors
        >>> isinstance(open_vectors("runs/demo"), VectorSet)  # a run
        False
    """

    def __init__(self, location: Location, record: VectorsRecord) -> None:
        self.location = location
        self.record = record

    @property
    def url(self) -> str:
        """Directory or URL of the store."""
        return self.location.url

    @property
    def model_name(self) -> str:
        """Name of the model, as the source or the user gave it."""
        return self.record.model

    @property
    def model_family(self) -> str:
        """``model_type`` of the model's configuration, from a safetensors export or a control vector; else empty."""
        return str(self.reduction.facts.get("model_family", ""))

    @property
    def n_layers(self) -> int:
        """Decoder layers of the model."""
        return self.record.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.record.d_model

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with vectors, 0-based."""
        return self.reduction.layers

    @property
    def middle_layer(self) -> int:
        """n_layers // 2, or the layer with vectors that is nearest to it."""
        return nearest_layer(self.layers, self.n_layers // 2)

    @cached_property
    def reduction(self) -> Reduction:
        """The vectors, loaded on first use.

        Raises:
            StoreError: They are missing or damaged.
        """
        found = read_current_reduction(self.location)
        if found is None:
            raise StoreError(
                f"the store has {layout.VECTORS_RECORD} but no vectors: part of it was deleted.",
                code="half_deleted",
                file=self.url,
                hint="Import them again into a new store.",
            )
        return found

    @property
    def capping_config(self) -> bytes | None:
        """The ``capping_config.pt`` of the released directory that was imported, as it was; None if there was none."""
        return self.location.read(layout.CAPPING_CONFIG)


Vectors = Run | VectorSet
"""A store with vectors, for what is done with either: both have ``reduction``, ``layers``, ``model_name`` and so on."""


def open_vectors(
    url: str | os.PathLike[str], endpoint_url: str | None = None, access: S3Access | None = None
) -> Vectors:
    """Open a store for its vectors: a run, or vectors that were imported.

    Args:
        url: Directory or URL of the store.
        endpoint_url: URL of an S3-compatible server; None as for ``open_run``.
        access: How requests to a bucket are made; None: signed, and with nothing special.

    Raises:
        InputError: There is neither a run nor imported vectors at the URL.
        StoreError: The record is damaged or of another layout version.

    Example:
        >>> vectors = open_vectors("runs/demo")
        >>> type(vectors).__name__, vectors.n_layers, vectors.d_model
        ('Run', 30, 576)
    """
    try:
        return open_run(url, endpoint_url, access)
    except InputError as error:
        if error.code != "vectors_only":
            raise
        location = open_location(url, endpoint_url, access)
        record = read_vectors_record(location)
        if record is None:
            raise
        return VectorSet(location, record)


def require_reduction(vectors: Vectors) -> Reduction:
    """Return the vectors of a store.

    Raises:
        InputError: The run was not reduced.
    """
    found = vectors.reduction
    if found is None:
        raise InputError(
            f"the run at {vectors.url} was not reduced, so it has no vectors yet.",
            code="not_reduced",
            field="STORE",
            hint=f"persona-atlas reduce {vectors.url} computes them.",
        )
    return found
