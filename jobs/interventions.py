"""Interventions: edits of the residual stream while a model runs, as frozen values. Does not import torch.

A request carries its intervention, and two requests with different interventions never share a prefix of the KV cache.
``workers/interventions.py`` applies the edits. A new kind of edit, such as capping, is a dataclass here that is added
to ``Edit``, and an entry of the table there.
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
        coefficient: Factor of the vector; negative to subtract.
    """

    layer: int
    vector: tuple[float, ...]
    coefficient: float = 1.0

    def problem(self, num_layers: int, d_model: int) -> str | None:
        """Explain why this edit cannot be applied to a model.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Returns:
            A clause for an error message; None when it can be applied.
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
"""Any kind of edit; becomes a union when there is a second one."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """Edits of the residual stream, applied in order. Without edits it is the same as no intervention.

    Attributes:
        edits: The edits, each with its layer.
    """

    edits: tuple[Edit, ...] = ()

    def require_applicable(self, num_layers: int, d_model: int) -> None:
        """Check that every edit can be applied to a model.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Raises:
            UnitError: An edit cannot be applied; names it and both values.
        """
        for position, edit in enumerate(self.edits):
            problem = edit.problem(num_layers, d_model)
            if problem is not None:
                raise UnitError(f"edit {position} of the intervention {problem}.", code="bad_intervention")
