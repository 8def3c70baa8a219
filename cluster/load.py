"""What one worker holds, and whether it may be handed more. Pure; the rule of every pool."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from ..jobs.units import UnitOrder

BATCHES_IN_FLIGHT = 2
"""Of a worker, about: what fills its batch, and what joins as places come free."""

_UNTIL_ITS_LONGEST = 1.15
"""Batches that a full worker holds, about: a unit is held until its longest response ends, and the others left their
places to the next before. In the simulation of a thousand replicas 1.0 left 8 % of the places empty towards the end,
and 1.3 dealt so far ahead that some had nothing to do while others ended."""

CALLS_IN_FLIGHT = 8
"""Of a worker, at most: assignments that are small for being the last."""


@dataclass
class Load:
    """Assignments that a worker was handed, and what of them it has not answered.

    Attributes:
        rollouts: Of all units that it has not answered.
    """

    rollouts: int = 0
    _assignments: dict[Hashable, dict[str, UnitOrder]] = field(default_factory=dict)

    def take(self, call: Hashable, orders: Sequence[UnitOrder]) -> None:
        """Remember what it was handed.

        Args:
            call: What its answers will be known by.
            orders: The assignment.
        """
        self._assignments[call] = {order.unit.unit_id: order for order in orders}
        self.rollouts += sum(order.unit.num_rollouts for order in orders)

    def answered(self, call: Hashable, unit_id: str) -> UnitOrder:
        """Forget, and give, a unit that it answered."""
        orders = self._assignments[call]
        order = orders.pop(unit_id)
        if not orders:
            del self._assignments[call]
        self.rollouts -= order.unit.num_rollouts
        return order

    def holds(self, call: Hashable) -> bool:
        """Whether an answer to an assignment is still to come."""
        return call in self._assignments

    def give_back(self, call: Hashable) -> list[UnitOrder]:
        """Forget, and give, what it has not answered of an assignment."""
        return [self.answered(call, unit_id) for unit_id in list(self._assignments.get(call, ()))]

    @property
    def orders(self) -> list[UnitOrder]:
        """All units that it holds."""
        return [order for orders in self._assignments.values() for order in orders.values()]

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing to do."""
        return not self._assignments

    @property
    def works_suspect(self) -> bool:
        """Whether it works a unit that may be to blame for an earlier failure; such a unit is an assignment alone."""
        return any(order.is_suspect for order in self.orders)

    def has_room_now(self, batch_rollouts: int) -> bool:
        """Say whether it is at work and its batch has room.

        Args:
            batch_rollouts: How many a batch holds.
        """
        return self._may_take_more and self.rollouts < int(_UNTIL_ITS_LONGEST * batch_rollouts)

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
