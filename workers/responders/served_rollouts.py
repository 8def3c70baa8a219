"""Make rollouts of a server's answers: which tokens prompt and response are, and whether they are the server's own."""

from __future__ import annotations

from collections.abc import Sequence

from ...jobs.errors import UnitError
from ...jobs.specs.spec_parts import SamplingSpec
from ...jobs.work.rollouts import Rollout, Served, ServedTokens
from ...jobs.work.units import RolloutRequest
from ..chat.spans import ConversationRenderer
from .answers import Completion

_RETOKENISED = 2
"""Most tokens of a response in multiples of ``max_new_tokens``, if its text is tokenised again: a unit's shards have
room for as many."""


class ServedRollouts:
    """Makes rollouts of a server's answers.

    Args:
        conversations: Renders conversations for the model.
        sampling: How the server was asked to sample.
        left_out: Fields of the request that the server does not take.
    """

    def __init__(
        self, conversations: ConversationRenderer, sampling: SamplingSpec, left_out: Sequence[str] = ()
    ) -> None:
        self._conversations = conversations
        self._most_tokens = sampling.max_new_tokens
        self._left_out = tuple(left_out)

    def make(self, request: RolloutRequest, completion: Completion) -> Rollout:
        """Make the rollout of an answer, from the server's token ids if it returned them, else from its text.

        Args:
            request: What was asked.
            completion: The answer.

        Raises:
            UnitError: The server rendered the prompt otherwise, its ids do not spell its text, or it is too long.
        """
        prompt_ids, ids = self._conversations.answer(request.messages, completion.text)
        served = Served(compare_tokens(completion, len(prompt_ids), len(ids)), self._left_out)
        num_content = len(ids)
        if completion.prompt_token_ids is not None and list(completion.prompt_token_ids) != prompt_ids:
            raise UnitError(
                f"{request.address}: {other_prompt(prompt_ids, completion.prompt_token_ids)}", code="other_prompt"
            )
        if completion.token_ids is not None:
            ids = list(completion.token_ids)
            num_content = self._count_content(request, completion, ids)
        else:
            self._require_length(request, num_content, is_counted=completion.num_tokens is not None)
        return Rollout(
            address=request.address,
            system_prompt=request.system_prompt,
            question=request.question,
            response=completion.text,
            prompt_token_ids=tuple(prompt_ids),
            response_token_ids=tuple(ids),
            num_content_tokens=num_content,
            finish_reason=completion.finish_reason,
            seed=request.seed,
            served=served,
        )

    def _count_content(self, request: RolloutRequest, completion: Completion, ids: Sequence[int]) -> int:
        has_ended = completion.finish_reason == "stop"
        count = self._conversations.count_content(ids, completion.text, has_ended=has_ended)
        if count is None:
            raise UnitError(
                f"{request.address}: the token ids that the server returned do not spell its text with this model's "
                "tokenizer; does it serve the same model?",
                code="other_tokens",
            )
        return count

    def _require_length(self, request: RolloutRequest, num_tokens: int, *, is_counted: bool) -> None:
        """Refuse a response that is too long by its text; a count of the server, which was checked, allows for more."""
        if num_tokens > self._most_tokens * (_RETOKENISED if is_counted else 1):
            raise UnitError(
                f"{request.address}: the server answers with {num_tokens} tokens, and at most {self._most_tokens} were "
                "asked for (sampling.max_new_tokens).",
                code="too_many_tokens",
            )


def compare_tokens(completion: Completion, num_prompt_tokens: int, num_content_tokens: int) -> ServedTokens:
    """Compare the tokens that a server sampled with those that its text becomes here.

    Args:
        completion: The server's answer.
        num_prompt_tokens: Length of the prompt, as rendered here.
        num_content_tokens: Length of the response's text, as tokenised here.

    Example:
        >>> compare_tokens(Completion("Ahoy.", "stop", num_tokens=3), 20, 2)
        'same_length'
    """
    if completion.token_ids is not None:
        return "exact"
    if completion.num_prompt_tokens not in (None, num_prompt_tokens):
        return "other_prompt"
    if completion.num_tokens is None:
        return "not_counted"
    # Most servers count the end-of-turn token, some do not.
    has_ended = completion.finish_reason == "stop"
    return "same_length" if completion.num_tokens - num_content_tokens in (0, int(has_ended)) else "other_length"


def other_prompt(ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Describe how a server's prompt differs from ours, as a sentence.

    Args:
        ours: Token ids of the prompt as rendered here.
        theirs: Token ids at the server.
    """
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return (
        f"the server renders the prompt to other tokens than the model's chat template here ({len(theirs)} instead of "
        f"{len(ours)}, the first difference at {place}); does it serve the same model, with the same chat template?"
    )
