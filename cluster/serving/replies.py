"""Chat completions and chunks of a stream as plain JSON values, in the shape of the OpenAI protocol. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .engine_loop import Finished

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReplyShape:
    """What all objects of one answer have in common.

    Attributes:
        reply_id: Id of the answer.
        model: Name of the model.
        created: When it was asked for, in seconds since 1970.
        with_usage: Whether a stream ends with the numbers of tokens.
    """

    reply_id: str
    model: str
    created: int
    with_usage: bool = False

    def completion(self, finished: Sequence[Finished], places: Sequence[Body]) -> Body:
        """Build a whole answer.

        Args:
            finished: The responses.
            places: ``persona_atlas`` object of each; the first is that of the answer, too.
        """
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text, "refusal": None},
                "finish_reason": one.finish_reason,
                "logprobs": None,
                "persona_atlas": placed,
            }
            for index, (one, placed) in enumerate(zip(finished, places, strict=True))
        ]
        return self._object("chat.completion", choices) | {"usage": usage(finished), "persona_atlas": places[0]}

    def chunk(self, index: int, delta: Body, finish_reason: str | None = None, placed: Body | None = None) -> Body:
        """Build one chunk of a stream.

        Args:
            index: Index of the response.
            delta: What is new.
            finish_reason: Why the response ended; None before its end.
            placed: ``persona_atlas`` object of the response, at its end.
        """
        more: Body = {} if placed is None else {"persona_atlas": placed}
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None} | more
        without_usage: Body = {"usage": None} if self.with_usage else {}
        return self._object("chat.completion.chunk", [choice]) | without_usage | more

    def usage_chunk(self, finished: Sequence[Finished], places: Sequence[Body]) -> Body:
        """Build the chunk after all responses, with the numbers of tokens."""
        return self._object("chat.completion.chunk", []) | {"usage": usage(finished), "persona_atlas": places[0]}

    def _object(self, kind: str, choices: list[Body]) -> Body:
        return {"id": self.reply_id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(finished: Sequence[Finished]) -> Body:
    """Count tokens: the prompt once, and all that was sampled, end-of-turn tokens and stop strings included.

    Args:
        finished: The responses to one prompt.
    """
    rollouts = [one.captured.rollout for one in finished]
    prompt = len(rollouts[0].prompt_token_ids)
    sampled = sum(len(rollout.response_token_ids) for rollout in rollouts)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}
