"""Read what a server returns for a judge's request: the reply, a refusal for good, or a failure that may pass.

Knows nothing of HTTP, nor of what a reply means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...jobs.judging.answers import Answer
from ...jobs.judging.requests import JudgeRequest
from ..responders.answers import RefusedError, TransientFailureError, parse_body, reason_of

_GIVEN_UP = frozenset({"abort", "aborted", "cancelled", "canceled", "error"})
_FILTER = ("content_filter", "content management policy", "content filter")


def read_answer(request: JudgeRequest, body_text: str) -> Answer:
    """Read the body of an answer with status 200.

    Args:
        request: The request.
        body_text: The body.

    Returns:
        The answer; a failure where the body is no chat completion.
    """
    try:
        body = parse_body(body_text)
    except TransientFailureError as error:
        return Answer(request, failure=f"{error}")
    except RefusedError as error:
        return refusal(request, str(error))
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Answer(request, failure=f"its answer is not a chat completion ({reason_of(body_text)})")
    reason = choice.get("finish_reason")
    if reason in _GIVEN_UP:
        return Answer(request, failure=f"it gave the request up (finish_reason {reason!r})")
    return _of_message(request, message, str(reason), body.get("usage"))


def refusal(request: JudgeRequest, why: str) -> Answer:
    """Make the answer to a request that the server does not take, whatever is retried.

    Args:
        request: The request.
        why: What the server said.
    """
    is_filter = any(word in why.lower() for word in _FILTER)
    return Answer(request, refused="content_filter" if is_filter else "request_refused", detail=why)


def _of_message(request: JudgeRequest, message: Mapping[str, Any], finish_reason: str, usage: Any) -> Answer:
    counts: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    prompt_tokens, reply_tokens = (_count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    text, refused, detail = _text(message.get("content")), None, ""
    if finish_reason == "content_filter":
        refused, detail = "content_filter", "the server's filter cut or replaced the reply"
    elif not text and message.get("refusal"):
        text, refused, detail = _text(message["refusal"]), "judge_refused", "the judge refused"
    return Answer(
        request,
        reply=text,
        is_cut=finish_reason == "length",
        refused=refused,
        detail=detail,
        num_prompt_tokens=prompt_tokens,
        num_reply_tokens=reply_tokens,
    )


def _text(content: Any) -> str:
    """Return a content as text; empty where there is none, as of a model that only reasoned."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = content if isinstance(content, str) else ""
    # Half a surrogate pair is no character, and could not be stored.
    return text.encode("utf-8", "replace").decode()


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
