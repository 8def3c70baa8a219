"""What a judge returns for one request. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from .outcomes import WhyUnscored
from .requests import JudgeRequest


@dataclass(frozen=True, slots=True)
class Answer:
    """A judge's answer to one request: a reply, a refusal for good, or a failure that may pass.

    Attributes:
        request: The request.
        reply: Text of the reply; None where there is none.
        is_cut: Whether the reply was cut at its greatest length.
        refused: Why there will be no reply to this request, however often it is made; None otherwise.
        failure: Why there is no reply this time, in a sentence; empty where nothing failed.
        detail: The refusal in a few words.
        num_prompt_tokens: Tokens of the request as the judge counts them; None where it does not.
        num_reply_tokens: Tokens of the reply likewise.
    """

    request: JudgeRequest
    reply: str | None = None
    is_cut: bool = False
    refused: WhyUnscored | None = None
    failure: str = ""
    detail: str = ""
    num_prompt_tokens: int | None = None
    num_reply_tokens: int | None = None
