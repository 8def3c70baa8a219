"""Admission to the running batch: which rollouts join in the next pass, as far as the KV cache has room.

Knows the cache's budget and nothing of passes. A request that cannot be started (its prompt is too long, say) stops
admission; its error is raised only when the running rollouts have ended, because they did not cause it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....jobs.errors import InputError, UnitError
from ....jobs.poolings import TokenRange
from ....jobs.specs.spec_parts import SamplingSpec
from ....jobs.work.rollouts import Rollout
from ....jobs.work.units import RolloutRequest
from ...chat.user_span import UserSpans
from ...editing.interventions import AppliedIntervention, Interventions, prompt_edits
from ...engine import StreamedRequest
from ..loaded_model import LoadedModel
from ..passes.kv_cache import KVCache
from ..sampling.sampling import uniforms
from .kept_turns import KeptTurns
from .prefixes import PrefixCache, SharedPrefix

_JOINING_TOKENS = {"cpu": 4096, "cuda": 16_384}
"""Prompt tokens after which no further rollout joins the same pass; bounds the memory of a pass."""

_GROUP = 16
"""Where rollouts join in groups, a group is this part of the batch: on average half of it waits for one to be free."""


@dataclass(eq=False)
class RunningRollout:
    """A rollout that is being generated; while it is in the batch it has a slot.

    Attributes:
        request: The request that it answers.
        sampling: How its tokens are sampled.
        prompt_ids: Token ids of its rendered prompt.
        random: One number in [0, 1) for each token that it may sample, drawn from its own seed, so that samples do not
            depend on the batch.
        user_span: Token range of the user's message in the prompt; None where no pooling needs it.
        intervention: Intervention that is applied to its tokens only; None for none.
        is_alone: Whether it must not share a pass with others.
        prefix: Prefix that its prompt shares with other prompts, or with the turn before it; None for none, and once it
            has joined the batch.
        leads: Whether this rollout computes the prefix for the others.
        on_token: Told of each content token; returns whether the response ends with it. None: nobody is told.
        token_ids: Token ids sampled so far, the end-of-turn token included.
        num_content: Number of these that are content.
        max_new: Most tokens that it may sample.
    """

    request: RolloutRequest
    sampling: SamplingSpec
    prompt_ids: list[int]
    random: list[float]
    user_span: TokenRange | None = None
    intervention: AppliedIntervention | None = None
    is_alone: bool = False
    prefix: SharedPrefix | None = None
    leads: bool = False
    on_token: Callable[[int], bool] | None = None
    token_ids: list[int] = field(default_factory=list)
    num_content: int = 0
    max_new: int = field(init=False)

    def __post_init__(self) -> None:
        self.max_new = self.sampling.max_new_tokens

    @property
    def num_positions(self) -> int:
        """Positions that it may need in the KV cache."""
        return len(self.prompt_ids) + self.max_new

    @property
    def start(self) -> int:
        """First position of the prompt that it computes itself; those before are copied from its prefix."""
        return self.prefix.length if self.prefix and not self.leads else 0

    @property
    def next_random(self) -> float:
        """The number by which its next token is picked; 0 where it has sampled as many as it may."""
        return self.random[len(self.token_ids)] if len(self.token_ids) < len(self.random) else 0.0

    def append(self, token: int, stop_ids: frozenset[int]) -> bool:
        """Append a sampled token; return whether it ends the response."""
        self.token_ids.append(token)
        if token in stop_ids:
            return True
        self.num_content += 1
        if self.on_token is not None and self.on_token(token):
            # As at the maximum length: it leaves the batch after the next pass, in which this token is observed.
            self.max_new = len(self.token_ids)
        return False

    def finished(self, tokenizer: Any) -> Rollout:
        """Make the rollout of all tokens sampled so far.

        Args:
            tokenizer: Decodes them.
        """
        content = self.token_ids[: self.num_content]
        return Rollout(
            address=self.request.address,
            system_prompt=self.request.system_prompt,
            question=self.request.question,
            response=tokenizer.decode(content, skip_special_tokens=False),
            prompt_token_ids=tuple(self.prompt_ids),
            response_token_ids=tuple(self.token_ids),
            num_content_tokens=self.num_content,
            finish_reason="stop" if len(self.token_ids) > self.num_content else "length",
            seed=self.request.seed,
        )

    @property
    def waits(self) -> bool:
        """Whether it needs a prefix that its leader has not computed yet."""
        return self.prefix is not None and not self.leads and self.prefix.kept is None


class Admission:
    """Admits requests to the running batch.

    Args:
        loaded: The model.
        cache: The KV cache, whose budget limits the batch.
        interventions: Prepares the requests' interventions for the model.
        user_spans: Locates user messages; None where no pooling needs them.
        kept_turns: What is kept of conversations that go on; None where nothing is.
        in_groups: Whether rollouts join a running batch only when there is room for a group of them, because a pass in
            which any joins takes much longer than one in which none does.

    Attributes:
        refused: Error of the request that could not be started; None while admission is open.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: KVCache,
        interventions: Interventions,
        user_spans: UserSpans | None,
        kept_turns: KeptTurns | None = None,
        *,
        in_groups: bool = False,
    ) -> None:
        self._loaded = loaded
        self._cache = cache
        self._in_groups = in_groups
        self._interventions = interventions
        self._user_spans = user_spans
        self._kept_turns = kept_turns
        self._prefixes = PrefixCache(loaded.renderer.shared_prefix)
        self._waiting: list[RunningRollout] = []
        self._held: RunningRollout | None = None
        self.refused: UnitError | None = None

    def joining(
        self, running: Sequence[RunningRollout], next_request: Callable[[], StreamedRequest | None]
    ) -> list[RunningRollout]:
        """Admit as many rollouts as there is room for.

        Args:
            running: The rollouts in the batch.
            next_request: Returns the next request, or None; see ``StreamingResponder.stream``.

        Returns:
            The rollouts whose prompts are part of the next pass. One that must be alone is returned when no other runs,
            and without others.
        """
        if self._in_groups and running and not self._waiting and not self._has_room_for_group(running):
            return []
        # The leader of those that waited was in the previous pass, so their prefix is computed now.
        joining, self._waiting = self._waiting, []
        num_tokens = sum(len(rollout.prompt_ids) - rollout.start for rollout in joining)
        while self.refused is None and num_tokens < _JOINING_TOKENS[self._loaded.device]:
            rollout = self._held or self._next(next_request)
            if rollout is None:
                break
            # Rollouts that wait for a prefix count too: they need a slot one pass later.
            everyone = [*running, *joining, *self._waiting, rollout]
            positions = max(other.num_positions for other in everyone)
            is_batch = len(everyone) > 1
            if not self._cache.fits(len(everyone), positions) or (rollout.is_alone and is_batch):
                # A request that was pulled cannot be returned: it is held, and joins first when there is room.
                self._held = rollout
                break
            self._held = None
            if rollout.is_alone:
                if self._kept_turns is not None:
                    self._kept_turns.forget(rollout.request)
                return [rollout]
            # Only now and not when the request was pulled: a held rollout must not become the leader of others.
            self._share_prefix(rollout)
            if self._kept_turns is not None and not is_batch and positions > self._cache.budget_tokens:
                # It is longer than what rollouts have in common: it takes the room of conversations that wait.
                self._kept_turns.clear()
            if rollout.waits:
                self._waiting.append(rollout)
                continue
            joining.append(rollout)
            num_tokens += len(rollout.prompt_ids) - rollout.start
        return joining

    def _has_room_for_group(self, running: Sequence[RunningRollout]) -> bool:
        positions = max(rollout.num_positions for rollout in running)
        return self._cache.fits(len(running) + max(1, self._cache.most_slots(positions) // _GROUP), positions)

    def _next(self, next_request: Callable[[], StreamedRequest | None]) -> RunningRollout | None:
        asked = next_request()
        if asked is None:
            return None
        try:
            return self._begun(asked)
        except UnitError as error:
            self.refused = error
        except InputError as error:
            self.refused = UnitError(f"{asked.request.address}: {error.message}", code=error.code, hint=error.hint)
        return None

    def _begun(self, asked: StreamedRequest) -> RunningRollout:
        request, max_new = asked.request, asked.sampling.max_new_tokens
        prompt_ids = self._loaded.renderer.render(request.messages)
        if len(prompt_ids) + max_new > self._loaded.max_context:
            raise too_long(request, len(prompt_ids), max_new, self._loaded.max_context)
        try:
            intervention = self._interventions.ready(request.intervention)
        except UnitError as error:
            raise UnitError(f"{request.address}: {error.message}", code=error.code, hint=error.hint) from None
        spans = self._user_spans
        user_span = spans.of_prompt(request.messages, prompt_ids) if spans else None
        random = uniforms([request.seed], max_new)[0].tolist()
        is_alone = len(prompt_ids) + max_new > self._loaded.sharing.up_to
        return RunningRollout(
            request, asked.sampling, prompt_ids, random, user_span, intervention, is_alone, on_token=asked.on_token
        )

    def _share_prefix(self, rollout: RunningRollout) -> None:
        most = len(rollout.prompt_ids) - 1
        if rollout.user_span is not None:
            # The prefix must end before the user's message: its contribution is kept for the prompt poolings only, so
            # the tokens of a user pooling have to be computed by the rollout itself.
            most = min(most, rollout.user_span[0])
        kept = self._kept_turns and self._kept_turns.take(rollout.request, rollout.prompt_ids, most)
        if kept:
            rollout.prefix, rollout.leads = kept, False
            return
        # Only the opening is worth sharing: later turns contain replies that no other conversation has.
        rollout.prefix, rollout.leads = self._prefixes.find(
            rollout.request.opening, rollout.prompt_ids, most, prompt_edits(rollout.intervention)
        )


def too_long(request: RolloutRequest, prompt: int, new: int, context: int) -> UnitError:
    """Make the error of a rollout that does not fit the context, with what would fit.

    Args:
        request: Its request.
        prompt: Tokens of its prompt.
        new: Most tokens of its response.
        context: Longest conversation that the model takes, in tokens.
    """
    room = context - prompt
    return UnitError(
        f"{request.address}: {prompt} prompt tokens and {new} new ones exceed the model's context of {context}.",
        code="too_long",
        hint=f"Set sampling.max_new_tokens to at most {room}, or shorten the prompt."
        if room > 0
        else f"Shorten the prompt to fewer than {context} tokens.",
    )
