"""Which nodes are left out, because workers die on them again and again. Pure: events and the time in, nodes out."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

MAX_DEATHS = 3
WITHIN_S = 3600.0
"""So many deaths of workers on one node within an hour, and it gets no more of them."""


@dataclass
class NodeHealth:
    """Keeps count of the workers that died, node by node.

    Attributes:
        left_out: Nodes that get no workers any more, each with the reason.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    _deaths: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def died(self, node: str, now: float, reason: str, *, is_unit_suspect: bool) -> bool:
        """Record that a worker died.

        Args:
            node: Where.
            now: Seconds, on any clock that only goes forward.
            reason: For people.
            is_unit_suspect: Whether it worked a unit that had failed before; then the unit may be to blame, which the
                ledger sees to, and the node is not charged.

        Returns:
            Whether the node is left out from now on.
        """
        if is_unit_suspect or node in self.left_out:
            return False
        deaths = self._deaths[node]
        deaths.append(now)
        while deaths[0] < now - WITHIN_S:
            deaths.popleft()
        if len(deaths) < MAX_DEATHS:
            return False
        self.left_out[node] = f"{MAX_DEATHS} workers died on it, the last: {reason}"
        return True

    def refused(self, node: str, reason: str) -> None:
        """Record that a worker on a node said it cannot hold the model; the node is left out at once."""
        self.left_out[node] = reason
