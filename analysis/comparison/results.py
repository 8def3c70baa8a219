"""What a comparison of two reductions found, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ComparedLayer:
    """Two layers at the same depth.

    Attributes:
        layer_a: 0-based layer of the first.
        layer_b: 0-based layer of the second.
        axis_cosine: Cosine between the two axes; None if widths differ or one has no axis here.
        projection_correlation: Correlation over the common roles of their projections; None without an axis.
        pc1_correlation: Absolute correlation over the common roles of their scores on the first components; None
            without components.
        roles_on_a: Mean projection of the common roles on the axis of the first, not centred: those of the first and
            those of the second, in units of the residual stream; higher is nearer the Assistant. It shows where a model
            that was trained from the first, or is steered or capped, has moved along that axis. None if widths differ
            or the first has no axis here.
        default_on_a: The same of the default Assistant; None also where one of the two has none.
        role_cosine: Mean over the common roles of the cosine between the role's vectors of both, each less the mean
            vector of its side; None if widths differ.
        lowest_role_cosine: The least of these cosines.
        component_cosines: Absolute cosine of each of the first components with the one of the same number; the sign of
            a component is arbitrary. None if widths differ, or without components.
        subspace_overlap: Share of the span of the first components of one that lies in the span of those of the other,
            0 to 1: the mean squared cosine of the principal angles. None likewise.
        overlap_by_chance: What that would be for random directions: the number of components by the width.
        principal_angles: The principal angles between these spans in degrees, ascending; None likewise.
        similarity_correlation: Correlation, over all pairs of common roles, of the cosines of their vectors in the one
            and in the other, each less the mean of its side: whether the same roles are alike. It needs no common
            coordinates. None with fewer than four roles.
    """

    layer_a: int
    layer_b: int
    axis_cosine: float | None
    projection_correlation: float | None
    pc1_correlation: float | None
    roles_on_a: tuple[float, float] | None = None
    default_on_a: tuple[float, float] | None = None
    role_cosine: float | None = None
    lowest_role_cosine: float | None = None
    component_cosines: tuple[float, ...] | None = None
    subspace_overlap: float | None = None
    overlap_by_chance: float | None = None
    principal_angles: tuple[float, ...] | None = None
    similarity_correlation: float | None = None


@dataclass(frozen=True, slots=True)
class MatchedComponent:
    """A component of the first reduction and the one of the second that orders the roles most alike.

    Attributes:
        component_a: Number of the component, from 1.
        component_b: Number of its partner, from 1.
        correlation: Correlation of the roles' scores on the two, made positive: signs of components are arbitrary.
        is_flipped: Whether the second had to be flipped for that.
        cosine: Cosine of the two directions, the second flipped likewise; None if widths differ.
    """

    component_a: int
    component_b: int
    correlation: float
    is_flipped: bool
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class MovedRole:
    """Where a role is on both axes.

    Attributes:
        role: Name.
        z_a: Its projection on the first axis, as a z-score among the common roles; higher is nearer the Assistant.
        z_b: The same on the second.
    """

    role: str
    z_a: float
    z_b: float

    @property
    def change(self) -> float:
        """How far the role moved, in z-scores; above zero it is nearer the Assistant in the second."""
        return self.z_b - self.z_a


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two reductions have in common and where they differ.

    Attributes:
        roles: Names of the common roles.
        layers: Every pair of layers at the same depth.
        at: The pair that all below is about.
        components: The first components of the first reduction with their partners, the best match first.
        moved: The common roles, the one that moved farthest first; empty without an axis.
        default_z: z-score of the default Assistant among the common roles, on both axes; None without an axis.
        notes: Sentences about what makes the two not alike in other ways.
    """

    roles: tuple[str, ...]
    layers: tuple[ComparedLayer, ...]
    at: ComparedLayer
    components: tuple[MatchedComponent, ...]
    moved: tuple[MovedRole, ...]
    default_z: tuple[float, float] | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return {
            "roles": len(self.roles),
            **asdict(self.at),
            "default_z": None if self.default_z is None else {"a": self.default_z[0], "b": self.default_z[1]},
            "components": [asdict(component) for component in self.components],
            "moved": [asdict(role) | {"change": role.change} for role in self.moved],
            "layers": [asdict(layer) for layer in self.layers],
            "notes": list(self.notes),
        }
