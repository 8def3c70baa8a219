"""What is changed in a model while it runs, as frozen values that requests carry. Knows no torch.

An intervention is part of a request: two requests that differ in it never share a prefix of a KV cache.
Axes: D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddVector:
    """Add ``coefficient * vector`` to what one decoder layer hands on, at every token.

    Attributes:
        layer: 0-based decoder layer.
        vector: D numbers, in the units of the residual stream.
        coefficient: Factor.
    """

    layer: int
    vector: tuple[float, ...]
    coefficient: float = 1.0


@dataclass(frozen=True, slots=True)
class Intervention:
    """Edits of the residual stream, applied in order; none of them is a no-op.

    Attributes:
        edits: What is done, at which layer.
    """

    edits: tuple[AddVector, ...] = ()
