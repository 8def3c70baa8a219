"""Read a chat completion: what counts as a response, what is worth another try, and what is refused, and why.

A response that is stored was sampled by the model right after the prompt that is stored with it, and ended by itself or
at ``max_new_tokens``. Many answers with status 200 are not that: reasoning came before the text, the request was
aborted, a filter cut it. Knows nothing of HTTP and of tokenizers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...jobs.work.rollouts import FinishReason

TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed."""

_ENDED: Mapping[str, FinishReason] = {"stop": "stop", "eos_token": "stop", "length": "length"}

_PASSING = frozenset({"abort", "aborted", "cancelled", "canceled", "error"})
"""Finish reasons of a request that the server gave up; the same request may succeed later."""

_REFUSALS = {
    "content_filter": "a content filter cut or replaced the text, so it is not the model's; ask a server without one",
    "tool_calls": "the model called a tool instead of answering; switch tools off in the server",
    "function_call": "the model called a function instead of answering; switch tools off in the server",
    "repetition": "the server ended the text because it repeats itself; switch its repetition detection off",
}

_REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")

_REASONING_TAGS = re.compile(
    r"^\s*(?:<(?:think|thinking|thought|reasoning|seed:think|\|channel\|>analysis)\b|\[THINK\]|◁think▷)"
    r"|</(?:think|thinking|thought|reasoning|seed:think)>|\[/THINK\]|◁/think▷",
)
"""Reasoning in a text: an opening tag at its start, or a closing tag anywhere, for the opening one may be in the prompt
of a template that begins the reasoning itself."""


class TransientFailureError(Exception):
    """A failure that may pass; the request is made again.

    Args:
        message: What happened.
        pause_s: The pause that the server asked for, in seconds; None where it asked for none.
    """

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class RefusedError(Exception):
    """A failure that another try would not change.

    Args:
        status: Status of the server's answer; 200 for an answer that is no response.
        message: Why.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Completion:
    """A server's answer: the response's text, how it ended, and which tokens it was.

    Attributes:
        text: Text of the response.
        finish_reason: How it ended.
        token_ids: The sampled ids, the end-of-turn token included; None where the server returns none.
        prompt_token_ids: Ids of the prompt at the server; None where it returns none.
        num_tokens: Number of sampled tokens as the server counts them; None where it does not.
        num_prompt_tokens: Number of tokens of the prompt as the server counts them; None where it does not.
    """

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None


def read_completion(text: str, max_new_tokens: int) -> Completion:
    """Read the body of an answer with status 200.

    Args:
        text: The body.
        max_new_tokens: Most tokens that were asked for.

    Raises:
        TransientFailureError: It is no chat completion, holds an error that may pass, or the server gave up.
        RefusedError: It is one, but its text is not a response that the model sampled after the prompt.
    """
    body = parse_body(text)
    choice, message = _only_choice(body)
    content = _content(choice, message)
    finish_reason = _finish_reason(choice)
    answer = Completion(
        text=content,
        finish_reason=finish_reason,
        token_ids=_ids(choice.get("token_ids") or choice.get("response_token_ids")),
        prompt_token_ids=_prompt_ids(body, choice),
        num_tokens=_count(body, "completion_tokens"),
        num_prompt_tokens=_count(body, "prompt_tokens"),
    )
    _require_expected_length(answer, max_new_tokens)
    return answer


def read_check(text: str) -> tuple[int, ...] | None:
    """Read the answer to a request of a single token, whose text may well be empty: half a character, for instance.

    Args:
        text: The body.

    Returns:
        Ids of the prompt at the server; None where it does not return them.

    Raises:
        TransientFailureError: It is no chat completion, or holds an error that may pass.
        RefusedError: It holds an error of the request, or the server reasons before it answers.
    """
    body = parse_body(text)
    choice, message = _only_choice(body)
    if message.get("content") is not None or any(message.get(name) for name in _REASONING_FIELDS):
        _content(choice, message)
    return _prompt_ids(body, choice)


def parse_body(text: str) -> dict[str, Any]:
    """Parse an answer with status 200 to a JSON object, and raise the error that it may hold instead of a completion.

    Args:
        text: The body.

    Raises:
        TransientFailureError: It is no JSON object, or holds an error that may pass.
        RefusedError: It holds an error of the request.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise TransientFailureError(f"its answer is not a chat completion, nor JSON ({reason_of(text)})") from None
    if not isinstance(body, dict):
        raise TransientFailureError(f"its answer is not a chat completion ({reason_of(text)})")
    error = body.get("error")
    if error:
        code: Any = error.get("code", error.get("status")) if isinstance(error, dict) else None
        message = f"an error inside an answer with status 200: {reason_of(text)}"
        status = next((status for status in range(400, 500) if str(code) == str(status)), None)
        if status is not None and status not in TRANSIENT_STATUSES:
            raise RefusedError(status, message)
        raise TransientFailureError(message)
    return body


def reason_of(text: str) -> str:
    """Extract the error message from a server's reply, on one line of at most 300 characters."""
    try:
        detail = json.loads(text)
    except (ValueError, RecursionError):
        detail = text
    if isinstance(detail, dict):
        detail = detail.get("error") or detail.get("message") or detail.get("detail") or detail
    if isinstance(detail, dict):
        detail = detail.get("message", detail)
    return " ".join(str(detail).split())[:300].rstrip(".") or "no reason given"


def _only_choice(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise TransientFailureError("its answer is not a chat completion (it has no choices)")
    if len(choices) > 1:
        raise RefusedError(200, f"it answers with {len(choices)} choices, and one was asked for")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise TransientFailureError("its answer is not a chat completion (its choice has no message)")
    return choice, message


def _content(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    """Return the text of a message, unless something beside or inside it shows that it is no plain response."""
    for reason in ("tool_calls", "function_call"):
        if message.get(reason):
            raise RefusedError(200, _REFUSALS[reason])
    content = message.get("content")
    reasoned = any(message.get(name) for name in _REASONING_FIELDS)
    if reasoned or (isinstance(content, str) and _REASONING_TAGS.search(content)):
        raise RefusedError(200, "it reasons before it answers; switch that off in the server")
    given_up = choice.get("finish_reason") in _PASSING
    if content is None and not given_up:
        refusal = message.get("refusal")
        raise RefusedError(200, f"it answers with no text{f' but a refusal: {refusal}' if refusal else ''}")
    if not isinstance(content, str) and not given_up:
        raise RefusedError(200, f"the content of its answer is no text but a JSON {type(content).__name__}")
    if not isinstance(content, str):
        return ""
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise RefusedError(200, "its answer holds half a surrogate pair, which is no character")
    return content


def _finish_reason(choice: Mapping[str, Any]) -> FinishReason:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str):
        raise RefusedError(200, "its answer has no finish_reason, so whether it is whole is not known")
    if reason in _ENDED:
        return _ENDED[reason]
    if reason in _PASSING:
        raise TransientFailureError(f"it gave the request up (finish_reason {reason!r})")
    raise RefusedError(200, _REFUSALS.get(reason, f"its answer ended for an unknown finish_reason, {reason[:40]!r}"))


def _require_expected_length(answer: Completion, max_new_tokens: int) -> None:
    """Refuse an answer whose number of tokens shows that it is no whole response of at most ``max_new_tokens``."""
    count = len(answer.token_ids) if answer.token_ids is not None else answer.num_tokens
    if count is not None and count > max_new_tokens:
        raise RefusedError(
            200,
            f"it answers with {count} tokens, and at most {max_new_tokens} were asked for (sampling.max_new_tokens)",
        )
    if not answer.text and answer.finish_reason == "length":
        raise RefusedError(
            200, "its answer was cut at the full length and has no text; reasoning that is left out is a usual cause"
        )
    if not answer.text and count is not None and count > 1:
        raise RefusedError(200, f"its answer has no text, but {count} tokens; what it left out is not known")
    if answer.finish_reason == "length" and count is not None and 0 < count < max_new_tokens:
        raise RefusedError(
            200,
            f"it cuts responses at {count} tokens, and {max_new_tokens} were asked for (sampling.max_new_tokens); "
            "raise the server's own limit or its context",
        )


def _prompt_ids(body: Mapping[str, Any], choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    return _ids(body.get("prompt_token_ids") or choice.get("prompt_token_ids"))


def _ids(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    return tuple(value) if all(type(token) is int and token >= 0 for token in value) else None


def _count(body: Mapping[str, Any], name: str) -> int | None:
    usage = body.get("usage")
    value = usage.get(name) if isinstance(usage, dict) else None
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
    if isinstance(reasoning, int) and reasoning > 0:
        raise RefusedError(200, f"it reasons before it answers ({reasoning} tokens); switch that off in the server")
    return value if type(value) is int and value >= 0 else None
