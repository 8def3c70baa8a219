"""When to retry workers that fail to load the model, and when to give the job up. Pure: events in, decisions out.

There are three ways to fail before a worker is ready. It *refuses*: it is alive and reports why it cannot load the
model (not enough memory, no GPU, another store). It *dies* while it loads. Or it dies before it has reported its node,
so that it is not known which node to avoid. A job that no worker can ever run must end soon with the reason; but a
temporary lack of memory on one node must not end a job that runs well on others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

REFUSALS = 3
"""Refusals in a row, while no worker is loading or ready, after which the job is given up. No further nodes are tried,
and an autoscaler does not start more of them."""

LATE_REFUSALS = 20
"""The same limit once any worker has loaded the model, or if the error is retryable."""

REFUSED_PAUSE_S = 30.0
"""Pause before launching another worker on a node where the last one refused. ``LATE_REFUSALS`` of them take ten
minutes, for a node whose memory is used by something else."""

LOADING_DEATHS = 3
"""Deaths in a row while loading, per wanted worker, after which the job is given up, unless a worker is ready, or one
has been loading for longer than any of these did."""

LONGEST_PAUSE_S = 60.0
"""Pauses between launches double from two seconds up to this while workers die before they report their node."""


class Refusal(Enum):
    """What to do about a worker that refused to load the model."""

    GIVE_UP = "give up"
    """No worker will be able to; the job ends with the worker's error."""

    RETRY_LATER = "retry later"
    """The error is retryable: try again after a pause, possibly on the same node."""

    LEAVE_OUT_NODE = "leave out node"
    """Other nodes may be able to: try those."""


@dataclass
class LoadingHealth:
    """Counts workers that refused or died before they were ready.

    Attributes:
        any_was_ready: Whether any worker has loaded the model since the job started.
    """

    any_was_ready: bool = False
    _refusals: int = 0
    _deaths: int = 0
    _longest_s: float = 0.0
    _unplaced_deaths: int = 0
    _had_room_at: float | None = None

    def placed(self) -> None:
        """Record that a worker has reported its node."""
        self._unplaced_deaths = 0

    def loaded(self) -> None:
        """Record that a worker has loaded the model."""
        self._refusals = self._deaths = 0
        self._longest_s = 0.0
        self.any_was_ready = True

    def refused(self, *, is_retryable: bool, is_room_elsewhere: bool, is_any_placed: bool) -> Refusal:
        """Record that a worker cannot load the model.

        Args:
            is_retryable: Whether its error may not occur again.
            is_room_elsewhere: Whether another node, not left out so far, has room for a worker.
            is_any_placed: Whether another worker is loading or ready.

        Returns:
            What to do next.
        """
        self._refusals += 1
        may_pass = self.any_was_ready or is_retryable
        limit = LATE_REFUSALS if may_pass else REFUSALS
        is_hopeless = self._refusals >= limit or not (may_pass or is_room_elsewhere)
        if is_hopeless and not is_any_placed:
            return Refusal.GIVE_UP
        return Refusal.RETRY_LATER if is_retryable else Refusal.LEAVE_OUT_NODE

    def died_loading(self, num_wanted: int, loading_s: float, *, is_any_ready: bool, others_s: float) -> bool:
        """Record that a worker died before it was ready, while its node lives.

        Args:
            num_wanted: Workers that the pool wants to have.
            loading_s: Seconds that it had been loading.
            is_any_ready: Whether a worker is ready.
            others_s: Seconds that the first of the others to be placed has been loading; 0: none is loading. If the
                workers that died did so sooner, it is not dying of what they did, and may yet load the model.

        Returns:
            Whether to give the job up.
        """
        self._deaths += 1
        self._longest_s = max(self._longest_s, loading_s)
        return self._deaths >= LOADING_DEATHS * num_wanted and not is_any_ready and others_s <= self._longest_s

    def died_unplaced(self) -> float:
        """Record that a worker died before it reported its node.

        Returns:
            Pause in seconds before the next is launched.
        """
        self._unplaced_deaths += 1
        # The exponent is bounded, too, because deaths may continue for days.
        return min(2.0 ** min(self._unplaced_deaths, 10), LONGEST_PAUSE_S)

    def waits_in_vain(self, now: float, *, has_room: bool, timeout_s: float) -> bool:
        """Record whether a worker has a place or could have one.

        Args:
            now: Seconds.
            has_room: Whether a worker is placed, or any node has room for one. Resources in use by other jobs count as
                room, because they will be freed; resources that no node has do not.
            timeout_s: Seconds that the job waits for room before any worker was ready.

        Returns:
            Whether to give the job up.
        """
        if self._had_room_at is None or has_room:
            self._had_room_at = now
        return now - self._had_room_at > timeout_s and not self.any_was_ready
