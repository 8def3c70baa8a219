"""What one worker holds, and whether it may be handed more. Pure; the rule of every pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...jobs.units import UnitOrder


@dataclass(frozen=True, slots=True)
class Hungry:
    """What a worker says when its engine has asked for all that it was handed.

    Only the worker knows: how many rollouts a batch holds hangs on their lengths, and a unit is held until the longest
    of its responses ends while the others left their places long before.

    Attributes:
        num_units: That it had been handed when it said so; what was handed to it since may already wait there.
    """

    num_units: int


@dataclass
class Load:
    """Units that a worker was handed and has not answered.

    Attributes:
        rollouts: Of all of them.
    """

    rollouts: int = 0
    _orders: dict[str, UnitOrder] = field(default_factory=dict)
    _num_handed: int = 0
    _num_asked_for: int = 0

    def take(self, orders: Sequence[UnitOrder]) -> None:
        """Remember what it was handed."""
        self._orders.update({order.unit.unit_id: order for order in orders})
        self.rollouts += sum(order.unit.num_rollouts for order in orders)
        self._num_handed += len(orders)

    def answered(self, unit_id: str) -> UnitOrder | None:
        """Forget, and give, a unit that it answered; None for one that it does not hold."""
        order = self._orders.pop(unit_id, None)
        self.rollouts -= order.unit.num_rollouts if order is not None else 0
        return order

    def refused(self, orders: Sequence[UnitOrder]) -> None:
        """Forget what did not reach it, or what it would not take."""
        for order in orders:
            self.answered(order.unit.unit_id)
        self._num_handed -= len(orders)

    def hears(self, said: Hungry) -> None:
        """Take note of what it said of itself."""
        self._num_asked_for = max(self._num_asked_for, said.num_units)

    @property
    def is_hungry(self) -> bool:
        """Whether it has asked for all that it was handed."""
        return 0 < self._num_handed <= self._num_asked_for

    @property
    def orders(self) -> list[UnitOrder]:
        """All units that it holds."""
        return list(self._orders.values())

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing to do."""
        return not self._orders

    @property
    def works_suspect(self) -> bool:
        """Whether it works a unit that may be to blame for an earlier failure; such a unit is an assignment alone."""
        return any(order.is_suspect for order in self._orders.values())

    @property
    def takes_more(self) -> bool:
        """Whether it is at work and asks for more.

        Not beside a suspect: should that one take the worker with it, nothing else is to go.
        """
        return self.is_hungry and not self.is_empty and not self.works_suspect
