"""What of a job's conversations the built-in engine keeps from one turn to the next, and what that saves. Pure.

The prompt of a turn repeats all that was said before it. Keys and values that are kept spare reading that again, and
take memory from the responses that run at a time. So they are kept only where there is much to spare: where the prompts
of a job repeat several times as many tokens as it generates, which conversations of two or three turns do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Plan
from ..poolings import pooling_named
from ..sources.source import TokenCounts

_LEAST_REPEATED = 4
"""Repeated tokens for each generated one from which on they are kept. SmolLM2 on one core took 3.1 ms for a token that
it read and 24 ms for one that it generated in a batch of five; on a GPU this has not been measured."""

_WAITING_SHARE = 0.5
"""Share of a batch for conversations that wait for the other side to speak, of which there are as many as run."""

_SCRIPTED_SHARE = 0.125
"""The same where all messages of the user are there: a conversation goes on as soon as its turn has ended."""


@dataclass(frozen=True, slots=True)
class TurnCache:
    """What is kept between turns.

    Attributes:
        share: Share of the tokens of a batch that is for conversations between two turns; 0 where none are kept.
        user_share: The same in an engine of a simulated user's own.
        tokens: Tokens of prompts that are not computed again if there is room for all.
        user_tokens: The same of the prompts of a simulated user's model.
    """

    share: float = 0.0
    user_share: float = 0.0
    tokens: int = 0
    user_tokens: int = 0


NOTHING_KEPT = TurnCache()
"""For engines and jobs that keep nothing between turns."""


def turn_cache(plan: Plan, texts: TokenCounts) -> TurnCache:
    """Decide what the built-in engine keeps of a plan whose conversations it generates, many texts in a pass.

    Turns under an intervention are not kept: a response was computed under the edits of responses, and would get those
    of prompts. Nor are any where a pooling needs more of a prompt than its last token.

    Args:
        plan: The plan.
        texts: Its tokens.
    """
    spec = plan.spec
    pools_prompts = any(pooling_named(name).reads_whole_prompt for name in spec.capture.poolings)
    tokens = 0 if plan.edits is not None or pools_prompts else texts.repeated_tokens
    if spec.drift is None:
        pays = tokens >= _LEAST_REPEATED * texts.response_tokens
        return TurnCache(_SCRIPTED_SHARE, tokens=tokens) if pays and tokens else NOTHING_KEPT
    user = spec.drift.user
    user_tokens = 0 if user.server is not None else texts.user_repeated_tokens
    if user.is_same:
        user_tokens = 0 if pools_prompts else user_tokens
        written = texts.response_tokens + texts.user_response_tokens
        pays = tokens + user_tokens >= _LEAST_REPEATED * written
        return TurnCache(_WAITING_SHARE, 0.0, tokens, user_tokens) if pays else NOTHING_KEPT
    pays = tokens > 0 and tokens >= _LEAST_REPEATED * texts.response_tokens
    user_pays = user_tokens > 0 and user_tokens >= _LEAST_REPEATED * texts.user_response_tokens
    return TurnCache(
        share=_WAITING_SHARE if pays else 0.0,
        user_share=_WAITING_SHARE if user_pays else 0.0,
        tokens=tokens if pays else 0,
        user_tokens=user_tokens if user_pays else 0,
    )
