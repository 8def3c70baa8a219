"""Exclude nodes on which workers die repeatedly or cannot run. Pure: events and the time in, excluded nodes out.

A node that has shown that it can run a worker is not excluded for good when the next one refuses to: the memory of a
worker that died may be freed only after its replacement was placed. Such a node rests, and is tried again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

MAX_DEATHS = 3
WITHIN_S = 3600.0
"""A node on which ``MAX_DEATHS`` workers have died within this time, in seconds, gets no more workers."""

RESTS = 3
FIRST_REST_S = 30.0
"""A node on which a worker has run rests this long after a refusal, in seconds, and twice as long after each further
one; after ``RESTS`` of them it is left out at the next."""


@dataclass
class NodeHealth:
    """Counts the workers that died and those that refused to run, node by node.

    Attributes:
        left_out: Nodes on which no more workers are placed, by node id, with the reason.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    _resting: dict[str, tuple[float, str]] = field(default_factory=dict)
    _rests: dict[str, int] = field(default_factory=dict)
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

    @property
    def excluded(self) -> dict[str, str]:
        """Nodes on which no worker is placed at present, left out or resting, by node id, with the reason."""
        resting = {node: f"{reason} It is tried again later." for node, (_, reason) in self._resting.items()}
        return self.left_out | resting

    def loaded(self, node: str) -> None:
        """Record that a worker has loaded its model.

        Args:
            node: Id of its node.
        """
        self._rests[node] = 0

    def refused(self, node: str, reason: str, now: float) -> None:
        """Let a node rest, or leave it out, because a worker cannot run there.

        Args:
            node: Id of the node.
            reason: The reason, for people.
            now: Seconds on a monotonic clock.
        """
        rests = self._rests.get(node, RESTS)
        if rests == RESTS:
            self.leave_out(node, reason)
        elif node not in self._resting:
            # Several workers that refuse at the same time are one reason to rest.
            self._rests[node] = rests + 1
            self._resting[node] = now + FIRST_REST_S * 2**rests, reason

    def leave_out(self, node: str, reason: str) -> None:
        """Leave a node out at once and for good.

        Args:
            node: Id of the node.
            reason: The reason, for people.
        """
        self._resting.pop(node, None)
        self.left_out[node] = reason

    def wake(self, now: float) -> bool:
        """End the rest of each node that has rested long enough.

        Args:
            now: Seconds on a monotonic clock.

        Returns:
            Whether there was one.
        """
        rested = [node for node, (until, _) in self._resting.items() if until <= now]
        for node in rested:
            del self._resting[node]
        return bool(rested)

    def readmit(self, node: str) -> None:
        """Place workers on a node again."""
        self.left_out.pop(node, None)
        self._resting.pop(node, None)
