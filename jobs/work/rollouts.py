"""One rollout, and the figures of a canary. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .addresses import RolloutAddress

FinishReason = Literal["stop", "length", "given", "not_reached"]
"""Why a response ended; ``not_reached``: its dialogue was over before that turn, so it is empty and has no prompt."""

ServedTokens = Literal["exact", "same_length", "other_length", "other_prompt", "not_counted"]
"""How the stored token ids of a server's response compare with what the server sampled.

``exact``: they are the server's own. Otherwise the text was tokenised again, into as many tokens as the server counted
(``same_length``) or into another number (``other_length``), or nothing was counted (``not_counted``).
``other_prompt``: the server counted another number of tokens in the prompt than its template gives here.
"""

ArrayName = tuple[str, str]
"""(hook point, pooling): names one of a run's activation arrays."""


@dataclass(frozen=True, slots=True)
class Served:
    """How a server answered a request.

    Attributes:
        tokens: How the stored token ids compare with those that it sampled.
        fields_left_out: Fields of the request that it did not take, so that its own defaults apply.
    """

    tokens: ServedTokens
    fields_left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EditRecord:
    """What the edits of one decoder layer did to the tokens of one rollout.

    A token counts as changed where its residual stream is another one after the layer's edits: for a cap, where the
    projection was beyond the limit.

    Attributes:
        layer: 0-based decoder layer.
        num_tokens: Tokens on which the layer's edits act: prompt and response content, or the content alone where all
            of them act on the response only.
        num_changed: How many of these were changed.
        mean_correction: Mean length of the change over the changed tokens, in units of the residual stream; 0 where
            none was changed.

    Example:
        >>> EditRecord(12, num_tokens=40, num_changed=10, mean_correction=2.5).share_changed
        0.25
    """

    layer: int
    num_tokens: int
    num_changed: int
    mean_correction: float

    @property
    def share_changed(self) -> float:
        """Changed tokens of those on which the edits act; 0 where they act on none."""
        return self.num_changed / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One conversation, generated or given, up to the end of one response.

    The response span is ``[len(prompt_token_ids), len(prompt_token_ids) + num_content_tokens)`` of the concatenated
    token ids: content only, without the end-of-turn token that may be the last of ``response_token_ids``.

    Attributes:
        address: Address of the rollout.
        system_prompt: The system prompt; ``""`` for none.
        question: The last user message before the response.
        response: Text of the response.
        prompt_token_ids: Token ids of everything before the response.
        response_token_ids: Token ids of the response, with the end-of-turn token if the model produced one.
        num_content_tokens: Number of content tokens of the response.
        finish_reason: ``stop``: the model ended its turn; ``length``: truncated at max_new_tokens; ``given``: an
            existing text, for which it is not known; ``not_reached``: the dialogue ended before this turn.
        seed: Seed of its samples; 0 for a given text.
        conversation_index: Index of the conversation in the job's input; None where a rollout is a single response.
        extra: Additional keys of the conversation in the input, as JSON; ``""`` where a rollout is a single response.
        served: How the server that generated it answered; None where no server did.
        edits: What its intervention did at each edited layer, ascending; None without an intervention. Left out of
            comparisons, because its sums are rounded differently in other batches.
    """

    address: RolloutAddress
    system_prompt: str
    question: str
    response: str
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    num_content_tokens: int
    finish_reason: FinishReason
    seed: int
    conversation_index: int | None = None
    extra: str = ""
    served: Served | None = None
    edits: tuple[EditRecord, ...] | None = field(default=None, compare=False)

    @property
    def has_vector(self) -> bool:
        """Whether the response has content to pool; if not, its rows of the response poolings are NaN."""
        return self.num_content_tokens > 0

    @property
    def is_reached(self) -> bool:
        """Whether the model was asked; if not, the row has no value in any pooling."""
        return self.finish_reason != "not_reached"


_SERVED_TEXTS: Mapping[ServedTokens, str] = {
    "exact": "with the server's own token ids",
    "same_length": "tokenised again, as long as the server counted",
    "other_length": "tokenised again, of another length than the server counted",
    "other_prompt": "whose prompt has another length at the server",
    "not_counted": "tokenised again, not counted by the server",
}


def served_text(counts: Mapping[str, int]) -> str:
    """Describe how the token ids of a run compare with those that a server sampled.

    Args:
        counts: Number of rollouts by ``ServedTokens``.

    Example:
        >>> served_text({"exact": 12, "other_length": 1})
        "12 with the server's own token ids; 1 tokenised again, of another length than the server counted"
    """
    return "; ".join(f"{counts[name]:,} {text}" for name, text in _SERVED_TEXTS.items() if counts.get(name))


@dataclass(frozen=True, slots=True)
class Canary:
    """How the captured vectors of some rollouts of a unit compare with a plain forward pass over each of them alone.

    Attributes:
        num_rollouts: Number of rollouts that were recomputed.
        relative_error_L: Largest ``|captured - plain| / |plain|`` per captured layer, over rollouts and arrays.
        cosine_L: Smallest cosine of captured and plain vector per captured layer.
        rows: Indices of these rollouts among the unit's rows, ascending; empty in records that did not list them.
        num_above: How many of them were above the limit of the job and kept, with a warning, because
            ``capture.canary.action`` is ``warn``; 0, and not stored, in most.
        taken_for: What a rollout's vectors are nearer to than to its own plain ones, such as another layer's; empty,
            and never stored, unless the comparison has failed.
    """

    num_rollouts: int
    relative_error_L: tuple[float, ...]
    cosine_L: tuple[float, ...]
    rows: tuple[int, ...] = ()
    num_above: int = 0
    taken_for: str = ""

    @property
    def worst_relative_error(self) -> float:
        """The largest relative error of all layers."""
        return max(self.relative_error_L)

    @staticmethod
    def merged(canaries: Sequence[Canary]) -> Canary:
        """Combine the comparisons of several rollouts of a unit: the largest error and the smallest cosine per layer.

        Args:
            canaries: At least one, each of other rollouts and all of the same layers.

        Example:
            >>> Canary.merged([Canary(1, (0.1,), (1.0,), (0,)), Canary(1, (0.2,), (0.9,), (3,))])
            Canary(num_rollouts=2, relative_error_L=(0.2,), cosine_L=(0.9,), rows=(0, 3), num_above=0, taken_for='')
        """
        return Canary(
            sum(one.num_rollouts for one in canaries),
            tuple(max(errors) for errors in zip(*(one.relative_error_L for one in canaries), strict=True)),
            tuple(min(cosines) for cosines in zip(*(one.cosine_L for one in canaries), strict=True)),
            tuple(sorted(row for one in canaries for row in one.rows)),
            sum(one.num_above for one in canaries),
        )
