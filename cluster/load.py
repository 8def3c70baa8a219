"""What one worker holds, and whether it may be handed more. Pure; the rule of every pool."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from ..jobs.units import UnitOrder

BATCHES_IN_FLIGHT = 2
"""Of a worker, about: what fills its batch, and what joins as places come free."""

CALLS_IN_FLIGHT = 8
"""Of a worker, at most: assignments that are small for being the last."""


@dataclass
class Load:
    """Assignments that a worker was handed and has not answered.

    Attributes:
        rollouts: Of all of them.
    """

    rollouts: int = 0
    _assignments: dict[Hashable, tuple[UnitOrder, ...]] = field(default_factory=dict)

    def take(self, call: Hashable, orders: Sequence[UnitOrder]) -> None:
        """Remember what it was handed.

        Args:
            call: What its answer will be known by.
            orders: The assignment.
        """
        self._assignments[call] = tuple(orders)
        self.rollouts += _num_rollouts(orders)

    def give_back(self, call: Hashable) -> tuple[UnitOrder, ...]:
        """Forget, and give, what it answered."""
        orders = self._assignments.pop(call, ())
        self.rollouts -= _num_rollouts(orders)
        return orders

    @property
    def orders(self) -> list[UnitOrder]:
        """All units that it holds."""
        return [order for orders in self._assignments.values() for order in orders]

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing to do."""
        return not self._assignments

    @property
    def works_suspect(self) -> bool:
        """Whether it works a unit that may be to blame for an earlier failure; such a unit is an assignment alone."""
        return any(orders[0].is_suspect for orders in self._assignments.values())

    def has_room_now(self, batch_rollouts: int) -> bool:
        """Say whether it is at work and its batch has room.

        Args:
            batch_rollouts: How many a batch holds.
        """
        return self._may_take_more and self.rollouts < batch_rollouts

    def has_room_ahead(self, batch_rollouts: int) -> bool:
        """Say whether it is at work and may be given what its batch has no room for yet, so that it never runs empty.

        An assignment is half a batch, so two batches are the most; where single units are longer, two assignments.
        """
        most = (BATCHES_IN_FLIGHT - 0.5) * batch_rollouts
        return self._may_take_more and (len(self._assignments) == 1 or self.rollouts <= most)

    @property
    def _may_take_more(self) -> bool:
        # Beside a suspect nothing: should that one take the worker with it, nothing else goes.
        return 0 < len(self._assignments) < CALLS_IN_FLIGHT and not self.works_suspect


def _num_rollouts(orders: Sequence[UnitOrder]) -> int:
    return sum(order.unit.num_rollouts for order in orders)
