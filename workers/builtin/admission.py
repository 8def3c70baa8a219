"""Which rollouts join the batch in the next pass: as many as there is room for, those that share a prefix in order.

Knows the cache's budget and nothing of passes. A rollout that cannot be begun stops the taking in, and its error is
raised when the rollouts under way have ended: they are not at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...jobs.errors import InputError, UnitError
from ...jobs.poolings import TokenRange
from ...jobs.units import RolloutRequest
from ..chat.user_span import UserSpans
from ..interventions import AppliedIntervention, Interventions
from .kv_cache import KVCache
from .loaded_model import LoadedModel
from .prefixes import PrefixCache, SharedPrefix
from .sampling import uniforms

_JOINING_TOKENS = 4096
"""Prompt tokens after which no more rollouts join in one pass: bounds the memory that a pass takes."""


@dataclass(eq=False)
class RunningRollout:
    """A rollout on its way; while it is in the batch it has a slot.

    Attributes:
        request: What was asked.
        prompt_ids: Its rendered prompt.
        random: A number in [0, 1) for each token that it may sample, its own whatever shares its batch.
        user_span: Tokens of the user's message, where a pooling is over them.
        intervention: What is changed in the model for it alone.
        prefix: What its prompt begins with and others' too.
        leads: Whether it reads the prefix for the others.
        token_ids: Sampled so far, the end of the turn included.
        num_content: How many of these are content.
    """

    request: RolloutRequest
    prompt_ids: list[int]
    random: list[float]
    user_span: TokenRange | None = None
    intervention: AppliedIntervention | None = None
    prefix: SharedPrefix | None = None
    leads: bool = False
    token_ids: list[int] = field(default_factory=list)
    num_content: int = 0

    @property
    def start(self) -> int:
        """The first position that it computes itself."""
        return self.prefix.length if self.prefix and not self.leads else 0

    @property
    def waits(self) -> bool:
        """Whether it needs a prefix that its leader has not read yet."""
        return self.prefix is not None and not self.leads and self.prefix.kept is None


class Admission:
    """Takes requests in.

    Args:
        loaded: The model.
        cache: Whose budget decides.
        max_new: Tokens that a rollout may sample.
        interventions: Of the model.
        user_spans: Finds the user's words; None where no pooling is over them.

    Attributes:
        refused: Why nothing more is taken in; None while all is well.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: KVCache,
        max_new: int,
        interventions: Interventions,
        user_spans: UserSpans | None,
    ) -> None:
        self._loaded = loaded
        self._cache = cache
        self._max_new = max_new
        self._interventions = interventions
        self._user_spans = user_spans
        self._prefixes = PrefixCache(loaded.renderer.shared_prefix)
        self._waiting: list[RunningRollout] = []
        self._held: RunningRollout | None = None
        self.refused: UnitError | None = None

    def joining(
        self, running: Sequence[RunningRollout], next_request: Callable[[], RolloutRequest | None]
    ) -> list[RunningRollout]:
        """Take in what there is room for.

        Args:
            running: The rollouts in the batch.
            next_request: See ``Responder.generate``.

        Returns:
            Those that begin in the next pass.
        """
        # Their leader was in the pass before, so now their prefix is there.
        joining, self._waiting = self._waiting, []
        num_tokens = sum(len(rollout.prompt_ids) - rollout.start for rollout in joining)
        while self.refused is None and num_tokens < _JOINING_TOKENS:
            rollout = self._held or self._next(next_request)
            if rollout is None:
                break
            # Those that wait for a prefix count too: they need a slot one pass later.
            everyone = [*running, *joining, *self._waiting, rollout]
            positions = max(len(other.prompt_ids) for other in everyone) + self._max_new
            if not self._cache.fits(len(everyone), positions):
                # A request that was asked for cannot be given back: it is the first to join when there is room.
                self._held = rollout
                break
            self._held = None
            # Only now, and not when it was asked for: a rollout that is held must not lead others.
            self._share_prefix(rollout)
            if rollout.waits:
                self._waiting.append(rollout)
                continue
            joining.append(rollout)
            num_tokens += len(rollout.prompt_ids) - rollout.start
        return joining

    def _next(self, next_request: Callable[[], RolloutRequest | None]) -> RunningRollout | None:
        request = next_request()
        if request is None:
            return None
        try:
            return self._begun(request)
        except UnitError as error:
            self.refused = error
        except InputError as error:
            self.refused = UnitError(f"{request.address}: {error.message}", code=error.code)
        return None

    def _begun(self, request: RolloutRequest) -> RunningRollout:
        prompt_ids = self._loaded.renderer.render(request.messages)
        if len(prompt_ids) + self._max_new > self._loaded.max_context:
            raise UnitError(
                f"{request.address}: {len(prompt_ids)} prompt tokens and {self._max_new} new ones exceed "
                f"the model's context of {self._loaded.max_context}.",
                code="too_long",
            )
        try:
            intervention = self._interventions.ready(request.intervention)
        except UnitError as error:
            raise UnitError(f"{request.address}: {error.message}", code=error.code) from None
        spans = self._user_spans
        user_span = spans.of_prompt(request.messages, prompt_ids) if spans else None
        random = uniforms([request.seed], self._max_new)[0].tolist()
        return RunningRollout(request, prompt_ids, random, user_span, intervention)

    def _share_prefix(self, rollout: RunningRollout) -> None:
        most = len(rollout.prompt_ids) - 1
        if rollout.user_span is not None:
            # The part of a prefix is the same for all who share it only while the user's words are outside of it.
            most = min(most, rollout.user_span[0])
        # Later turns hold replies that no other conversation has: what many have in common is how they open.
        rollout.prefix, rollout.leads = self._prefixes.find(
            rollout.request.opening, rollout.prompt_ids, most, rollout.intervention
        )
