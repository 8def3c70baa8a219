"""What one worker holds, and whether it may be handed more. Pure; the rule of every pool."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from ..jobs.units import UnitOrder

BATCHES_IN_FLIGHT = 2
"""Of a worker, about: what fills its batch, and what joins as places come free."""

CALLS_IN_FLIGHT = 16
"""Of a worker, at most: assignments that are small for being the last."""


@dataclass(frozen=True, slots=True)
class Hungry:
    """What a worker says when nothing that it was handed waits any more and its batch asks for more.

    Only the worker knows: how many rollouts a batch holds hangs on their lengths, and a unit is held until the longest
    of its responses ends while the others left their places long before.

    Attributes:
        num_units: That it had been handed when it said so; what was handed to it since may already wait there.
    """

    num_units: int


@dataclass
class Load:
    """Assignments that a worker was handed, and what of them it has not answered.

    Attributes:
        rollouts: Of all units that it has not answered.
        is_hungry: Whether it said so and was handed nothing since.
    """

    rollouts: int = 0
    is_hungry: bool = False
    _num_units: int = 0
    _assignments: dict[Hashable, dict[str, UnitOrder]] = field(default_factory=dict)

    def take(self, call: Hashable, orders: Sequence[UnitOrder]) -> None:
        """Remember what it was handed.

        Args:
            call: What its answers will be known by.
            orders: The assignment.
        """
        self._assignments[call] = {order.unit.unit_id: order for order in orders}
        self.rollouts += sum(order.unit.num_rollouts for order in orders)
        self._num_units += len(orders)
        self.is_hungry = False

    def hears(self, said: Hungry) -> None:
        """Take note of what it said of itself."""
        self.is_hungry = said.num_units == self._num_units

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

    @property
    def has_room_now(self) -> bool:
        """Whether it is at work and could begin more at once."""
        return self.is_hungry and self._may_take_more

    def has_room_ahead(self, batch_rollouts: int) -> bool:
        """Say whether it is at work and may be given what its batch has no room for yet, so that it never runs empty.

        An assignment is half a batch, so two batches are the most; where single units are longer, two assignments.

        Args:
            batch_rollouts: How many a batch holds, about.
        """
        most = (BATCHES_IN_FLIGHT - 0.5) * batch_rollouts
        return self._may_take_more and (self.is_hungry or len(self._assignments) == 1 or self.rollouts <= most)

    @property
    def _may_take_more(self) -> bool:
        # Beside a suspect nothing: should that one take the worker with it, nothing else goes.
        return 0 < len(self._assignments) < CALLS_IN_FLIGHT and not self.works_suspect
