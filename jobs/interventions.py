"""Interventions: edits of the residual stream while a model runs, as frozen values. Does not import torch.

An edit acts on the output of one decoder layer (``resid_post``), along one direction: it adds a vector, removes the
component along a direction (ablation), or keeps the projection on a direction from falling below a floor (capping).
A request carries its intervention. Prompts, their KV cache and shared prefixes are shared between requests whose
interventions are equal in what acts on prompt tokens (``Intervention.of_prompt``).

Every kind of edit states its ``Terms``, and ``workers/editing/edits.py`` has the one formula that applies them. A new
kind of edit is a dataclass here with ``terms`` and ``problem`` that is added to ``Edit``.
Axes: D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from .errors import UnitError

Positions = Literal["all", "response"]
"""Which tokens an edit acts on: ``all``, or those of the ``response`` only.

In generation the response is what is fed to the model at an index of at least the prompt's length; the last prompt
token, from whose logits the first response token is sampled, is part of the prompt. In a given text it is the response
spans.
"""

_MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, repr=False)
class Direction:
    """A vector of D float32 numbers in the residual stream, of any length. Equal and hashable by value.

    Attributes:
        data: The numbers as little-endian float32. Bytes, because Python computes their hash only once.

    Example:
        >>> Direction.of([3.0, 4.0])
        Direction(2 numbers, norm 5)
        >>> (-Direction.of([3.0, 4.0])).numbers.tolist()
        [-3.0, -4.0]
    """

    data: bytes

    @classmethod
    def of(cls, numbers: Sequence[float] | npt.NDArray[Any]) -> Direction:
        """Make a direction from numbers, which are rounded to float32.

        Args:
            numbers: D numbers, in the units of the residual stream.

        Raises:
            ValueError: They are not a single row of numbers.
        """
        with np.errstate(over="ignore"):
            # Adding 0 turns minus zero, which is equal to zero but has other bytes, into zero.
            numbers_D = np.asarray(numbers, dtype="<f4") + np.float32(0)
        if numbers_D.ndim != 1:
            raise ValueError(f"a direction is one row of numbers; these have the shape {numbers_D.shape}")
        return cls(numbers_D.tobytes())

    @property
    def numbers(self) -> npt.NDArray[np.float32]:
        """The numbers: float32 ``(D,)``, read-only."""
        return np.frombuffer(self.data, dtype="<f4")

    @property
    def norm(self) -> float:
        """Its Euclidean length, computed in float64; NaN or infinite where a number is."""
        with np.errstate(invalid="ignore"):
            return float(np.linalg.norm(self.numbers.astype(np.float64)))

    @property
    def unit(self) -> npt.NDArray[np.float32]:
        """The same direction with length one: float32 ``(D,)``; zeros where the norm is 0."""
        norm = self.norm
        return (self.numbers.astype(np.float64) / norm if norm else np.zeros(len(self))).astype(np.float32)

    def __len__(self) -> int:
        """Return D."""
        return len(self.data) // 4

    def __neg__(self) -> Direction:
        """Return the opposite direction, of the same length."""
        return Direction.of(-self.numbers)

    def __repr__(self) -> str:
        """Show the width and the norm; the numbers would fill a page."""
        return f"Direction({len(self)} numbers, norm {self.norm:.6g})"


class Terms(NamedTuple):
    """What one edit does to a token h, with v of length one and p = <h, v>: h + v * (a + b * p + max(floor - p, 0)).

    Attributes:
        a: Constant part of the change along v, in units of the residual stream.
        b: Factor of the projection: -1 removes it.
        floor: Least projection afterwards, in units of the residual stream; minus infinity for none.
    """

    a: float = 0.0
    b: float = 0.0
    floor: float = -math.inf


@dataclass(frozen=True, slots=True)
class AddVector:
    """Add ``coefficient * vector`` to the output of one decoder layer.

    Attributes:
        layer: 0-based decoder layer.
        vector: D numbers, in the units of the residual stream.
        coefficient: Factor of the vector; negative to subtract.
        positions: Which tokens it acts on.

    Example:
        >>> AddVector(3, Direction.of([3.0, 4.0]), coefficient=-2.0).terms
        Terms(a=-10.0, b=0.0, floor=-inf)
    """

    layer: int
    vector: Direction
    coefficient: float = 1.0
    positions: Positions = "all"

    @property
    def terms(self) -> Terms:
        """What it does along ``vector.unit``: a constant."""
        return Terms(a=self.coefficient * self.vector.norm)

    def problem(self, num_layers: int, d_model: int) -> str | None:
        """Explain why this edit cannot be applied to a model.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Returns:
            A clause for an error message; None when it can be applied.
        """
        return _problem(self, num_layers, d_model) or _not_finite(self, "coefficient", self.coefficient, self.terms.a)


@dataclass(frozen=True, slots=True)
class Ablate:
    """Remove the component along a direction: h - v <h, v>, with v = vector / norm.

    Attributes:
        layer: 0-based decoder layer.
        vector: The direction, of any length but 0.
        positions: Which tokens it acts on.

    Example:
        >>> Ablate(3, Direction.of([3.0, 4.0])).terms
        Terms(a=0.0, b=-1.0, floor=-inf)
    """

    layer: int
    vector: Direction
    positions: Positions = "all"

    @property
    def terms(self) -> Terms:
        """What it does along ``vector.unit``: it subtracts the projection."""
        return Terms(b=-1.0)

    def problem(self, num_layers: int, d_model: int) -> str | None:
        """Explain why this edit cannot be applied to a model.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Returns:
            A clause for an error message; None when it can be applied.
        """
        return _problem(self, num_layers, d_model) or _zero(self)


@dataclass(frozen=True, slots=True)
class Cap:
    """Keep the projection on a direction at or above a floor: h - v * min(<h, v> - floor, 0), with v = vector / norm.

    Source: the activation capping of arXiv:2601.10387, where v points toward the Assistant.

    Attributes:
        layer: 0-based decoder layer.
        vector: The direction, of any length but 0.
        floor: Least projection on v afterwards, in units of the residual stream, in the sign of ``vector``.
        positions: Which tokens it acts on.

    Example:
        >>> Cap(3, Direction.of([3.0, 4.0]), floor=1.5).terms
        Terms(a=0.0, b=0.0, floor=1.5)
    """

    layer: int
    vector: Direction
    floor: float
    positions: Positions = "all"

    @classmethod
    def ceiling(cls, layer: int, vector: Direction, ceiling: float, positions: Positions = "all") -> Cap:
        """Keep the projection at or below a ceiling: h - u * max(<h, u> - ceiling, 0), with u = vector / norm.

        It is the floor ``-ceiling`` on the opposite direction, which is how it is kept.

        Args:
            layer: 0-based decoder layer.
            vector: The direction, of any length but 0.
            ceiling: Greatest projection on u afterwards, in units of the residual stream, in the sign of ``vector``.
            positions: Which tokens it acts on.

        Example:
            >>> Cap.ceiling(3, Direction.of([3.0, 4.0]), 2.0).floor
            -2.0
        """
        return cls(layer, -vector, -ceiling, positions)

    @property
    def terms(self) -> Terms:
        """What it does along ``vector.unit``: it keeps a floor."""
        return Terms(floor=self.floor)

    def problem(self, num_layers: int, d_model: int) -> str | None:
        """Explain why this edit cannot be applied to a model.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Returns:
            A clause for an error message; None when it can be applied.
        """
        return _problem(self, num_layers, d_model) or _zero(self) or _not_finite(self, "floor", self.floor)


Edit = AddVector | Ablate | Cap
"""Any kind of edit of the output of one decoder layer."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """Edits of the residual stream, applied in order. Without edits it is the same as no intervention.

    Attributes:
        edits: The edits, each with its layer.

    Example:
        >>> axis = Direction.of([0.0, 1.0])
        >>> both = Intervention((Cap(4, axis, 1.5), AddVector(5, axis, 2.0, positions="response")))
        >>> both.on_prompt, both.on_response, both.of_prompt() == Intervention((Cap(4, axis, 1.5),))
        (True, True, True)
    """

    edits: tuple[Edit, ...] = ()

    @property
    def on_prompt(self) -> bool:
        """Whether any edit acts on prompt tokens."""
        return any(edit.positions == "all" for edit in self.edits)

    @property
    def on_response(self) -> bool:
        """Whether any edit acts on response tokens."""
        return bool(self.edits)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer of each edit, in order."""
        return tuple(edit.layer for edit in self.edits)

    def of_prompt(self) -> Intervention:
        """Return the edits that act on prompt tokens: what decides whether two requests may share a prompt."""
        return Intervention(tuple(edit for edit in self.edits if edit.positions == "all"))

    def problem(self, num_layers: int, d_model: int) -> str | None:
        """Explain why an edit cannot be applied to a model.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Returns:
            A clause that names the edit, for an error message; None when all can be applied.

        Example:
            >>> Intervention((Ablate(9, Direction.of([0.0, 1.0])),)).problem(num_layers=4, d_model=2)
            'edit 0 of the intervention edits layer 9; the model has layers 0 to 3'
        """
        for position, edit in enumerate(self.edits):
            problem = edit.problem(num_layers, d_model)
            if problem is not None:
                return f"edit {position} of the intervention {problem}"
        return None

    def require_applicable(self, num_layers: int, d_model: int) -> None:
        """Check that every edit can be applied to a model.

        Args:
            num_layers: Decoder layers of the model.
            d_model: Width of its residual stream.

        Raises:
            UnitError: An edit cannot be applied; names it and both values.
        """
        problem = self.problem(num_layers, d_model)
        if problem is not None:
            raise UnitError(f"{problem}.", code="bad_intervention")


def _problem(edit: Edit, num_layers: int, d_model: int) -> str | None:
    """Explain what is wrong with the layer, the tokens or the numbers of any edit."""
    layer, vector = edit.layer, edit.vector
    if not 0 <= layer < num_layers:
        return f"edits layer {layer}; the model has layers 0 to {num_layers - 1}"
    if edit.positions not in get_args(Positions):
        return f"acts at layer {layer} on {edit.positions!r} tokens; an edit acts on 'all' or on 'response' tokens"
    if len(vector) != d_model:
        return f"has a vector of {len(vector)} numbers at layer {layer}; the model's d_model is {d_model}"
    if not np.isfinite(vector.numbers).all():
        return f"has a vector at layer {layer} with a number that is not finite"
    return None


def _zero(edit: Edit) -> str | None:
    # Adding a vector of zeros is harmless; a projection on one does not exist.
    return None if edit.vector.norm else f"has a vector of zeros at layer {edit.layer}, which has no direction"


def _not_finite(edit: Edit, name: str, *numbers: float) -> str | None:
    # Edits are computed in float32. NaN is not at most anything.
    if all(abs(number) <= _MOST for number in numbers):
        return None
    return f"has a {name} of {numbers[0]:g} at layer {edit.layer}, which is not finite in float32"
