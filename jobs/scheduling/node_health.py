"""Exclude nodes on which workers die repeatedly. Pure: events and the time in, excluded nodes out."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

MAX_DEATHS = 3
WITHIN_S = 3600.0
"""A node on which ``MAX_DEATHS`` workers have died within this time, in seconds, gets no more workers."""


@dataclass
class NodeHealth:
    """Counts the workers that died, node by node.

    Attributes:
        left_out: Nodes on which no more workers are placed, by node id, with the reason.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    _deaths: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def died(self, node: str, now: float, reason: str, *, is_unit_suspect: bool) -> bool:
        """Record that a worker died.

        Args:
            node: Id of its node.
            now: Seconds on a monotonic clock.
            reason: The reason, for people.
            is_unit_suspect: Whether the worker held a suspect, a unit that had failed before. Then the unit may be the
                cause, which the ledger handles, and the death does not count against the node.

        Returns:
            Whether this death makes the node be left out.
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
        """Leave out a node at once, because a worker cannot run there.

        Args:
            node: Id of the node.
            reason: The reason, for people.
        """
        self.left_out[node] = reason
