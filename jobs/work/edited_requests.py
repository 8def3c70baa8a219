"""The requests of a unit under the edits of its run. A worker has the edits already; they are not sent with units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..interventions import Intervention
from .rollouts import Rollout
from .units import RolloutRequest, UnitAttempt, UnitRequests, WorkUnit


@dataclass(frozen=True, slots=True)
class EditedRequests:
    """Makes the requests of another ``UnitRequests``, each with the same intervention.

    Attributes:
        requests: The unit's texts, of any source. No source gives its requests an intervention of their own.
        intervention: The edits of the run; every request refers to this one object.
    """

    requests: UnitRequests
    intervention: Intervention

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make the requests that do not depend on a reply; see ``UnitRequests.first``."""
        return (replace(request, intervention=self.intervention) for request in self.requests.first(unit))

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Make the follow-up request of a conversation; see ``UnitRequests.following``."""
        following = self.requests.following(request, rollout)
        return None if following is None else replace(following, intervention=self.intervention)


def under(intervention: Intervention | None, attempt: UnitAttempt) -> UnitAttempt:
    """Return an attempt whose requests carry an intervention; the same attempt where there is none.

    Args:
        intervention: The edits of the run; None for none.
        attempt: The attempt, as it was assigned.
    """
    if intervention is None:
        return attempt
    return replace(attempt, requests=EditedRequests(attempt.requests, intervention))
