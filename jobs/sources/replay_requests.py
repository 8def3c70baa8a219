"""The requests of a unit of stored responses: as the token ids that they have, or as conversations to be rendered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..conversation import Conversation
from ..messages import ChatMessage
from ..work.rollouts import Rollout
from ..work.units import GivenResponse, RolloutRequest, StoredResponse, WorkUnit
from .stored_conversations import StoredRow


@dataclass(frozen=True, slots=True)
class StoredTokenRequests:
    """The rows of a unit as token ids.

    Attributes:
        rows: The rows, in the order of the unit's.
    """

    rows: tuple[StoredRow, ...]

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make every request of the unit."""
        assert unit.conversation_indices is not None
        for address, index, row in zip(unit.addresses(), unit.conversation_indices, self.rows, strict=True):
            system = (ChatMessage("system", row.system_prompt),) if row.system_prompt else ()
            yield RolloutRequest(
                address,
                (*system, ChatMessage("user", row.question)),
                0,
                stored=StoredResponse(row.response, row.prompt_token_ids, row.content_token_ids),
                conversation_index=index,
                extra=row.extra,
            )

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Return None: every response exists; see ``UnitRequests.following``."""
        return None


@dataclass(frozen=True, slots=True)
class StoredTextRequests:
    """The rows of a unit as responses of conversations, to be rendered again.

    Attributes:
        responses: The conversation of each row, and its turn there.
    """

    responses: tuple[tuple[Conversation, int], ...]

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make every request of the unit."""
        for address, (conversation, turn) in zip(unit.addresses(), self.responses, strict=True):
            messages = dict(conversation.prompts())[turn]
            yield RolloutRequest(address, messages, 0, GivenResponse(conversation, turn))

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Return None: every response exists; see ``UnitRequests.following``."""
        return None
