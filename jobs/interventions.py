"""What is changed in a model while it runs, as frozen values that requests carry. Knows no torch.

An intervention is part of a request: two requests that differ in it never share a prefix of a KV cache. How each kind
of edit is applied stands in ``workers/interventions.py``; a new kind is a dataclass here, a member of ``Edit`` and one
entry of the table there.
Axes: D d_model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import UnitError


@dataclass(frozen=True, slots=True)
class AddVector:
    """Add ``coefficient * vector`` to the output of one decoder layer, at every token.

    Attributes:
        layer: 0-based decoder layer.
        vector: D numbers, in the units of the residual stream.
        coefficient: Factor.
    """

    layer: int
    vector: tuple[float, ...]
    coefficient: float = 1.0

    def problem(self, num_layers: int, d_model: int) -> str | None:
        """Say what keeps this edit from being applied to a model.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Returns:
            A clause for an error message; None when nothing does.
        """
        if not 0 <= self.layer < num_layers:
            return f"edits layer {self.layer}; the model has layers 0 to {num_layers - 1}"
        if len(self.vector) != d_model:
            return (
                f"adds a vector of {len(self.vector)} numbers at layer {self.layer}; the model's d_model is {d_model}"
            )
        if not all(math.isfinite(value) for value in (self.coefficient, *self.vector)):
            return f"adds a vector at layer {self.layer} with a number, or a coefficient, that is not finite"
        return None


Edit = AddVector
"""Every kind of edit."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """Edits of the residual stream, applied in order; none of them is a no-op.

    Attributes:
        edits: What is done, at which layer.
    """

    edits: tuple[Edit, ...] = ()

    def require_applicable(self, num_layers: int, d_model: int) -> None:
        """Make sure that a model can be edited this way.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Raises:
            UnitError: It cannot; names the edit and both values.
        """
        for position, edit in enumerate(self.edits):
            problem = edit.problem(num_layers, d_model)
            if problem is not None:
                raise UnitError(f"edit {position} of the intervention {problem}.", code="bad_intervention")
