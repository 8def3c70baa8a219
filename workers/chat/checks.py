"""What a chat template leaves open before a response, and which token it ends one with: found by rendering probes.

The checks here are made before a model is loaded. They refuse a template after whose prompt a model would not answer
but reason, and one whose prompts a server would write with another date than they are captured with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...jobs.errors import InputError
from ...jobs.messages import ChatMessage
from .reasoning import channel_left_to_model, opened_by_prompt
from .renderer import PROBE_ANSWER, PROBE_QUESTION, PROBE_SYSTEM, ChatRenderer

_HINT = (
    "Give a copy of its template that closes the tag in model.chat_template, or choose a model that can answer at once."
)


def left_open(renderer: ChatRenderer, opening: Sequence[ChatMessage] = ()) -> str | None:
    """Return the tag in which a prompt leaves its response, such as ``<think>``; None if it is outside of every tag.

    Args:
        renderer: Renders by the template.
        opening: The system messages of the prompt; some templates switch reasoning by them.
    """
    return opened_by_prompt(*_before_response(renderer, opening))


def left_channel(renderer: ChatRenderer) -> str | None:
    """Return the header of a channel that a prompt leaves to the model, such as ``<|channel|>final``; None for none.

    Args:
        renderer: Renders by the template.
    """
    return channel_left_to_model(*_before_response(renderer, ()))


def _before_response(renderer: ChatRenderer, opening: Sequence[ChatMessage]) -> tuple[str, str]:
    """Return what the template writes between a question and a response: that is to be generated, and that exists."""
    question, answer = PROBE_QUESTION.content, PROBE_ANSWER.content
    prompt = renderer.text(renderer.for_template([*opening, PROBE_QUESTION]), generate=True)
    history = renderer.probed(opening, generate=False) or ""
    return prompt.rpartition(question)[2], history.rpartition(question)[2].partition(answer)[0]


def require_no_channel(renderer: ChatRenderer) -> None:
    """Refuse a template that leaves it to the model in which channel a response begins.

    Args:
        renderer: Renders by the template.

    Raises:
        InputError: Responses would begin with reasoning in a channel of its own, and a mean would be over it.
    """
    header = left_channel(renderer)
    if header is not None:
        raise InputError(
            f"the chat template writes {header} before a response that exists, and ends a prompt before it: the model "
            "chooses the channel itself, and its responses would begin with reasoning.",
            code="opens_reasoning",
            field=renderer.source.field,
            hint=f"Give a copy of its template that ends a prompt with {header}, and what the template writes after "
            "that before a response, in model.chat_template.",
        )


def require_closed_prompts(renderer: ChatRenderer, openings: Iterable[Sequence[ChatMessage]] = ((),)) -> None:
    """Refuse a template after whose prompt a response would begin inside of reasoning.

    Args:
        renderer: Renders by the template.
        openings: The system messages of each prompt.

    Raises:
        InputError: A prompt ends inside of a tag, so that a mean would be over reasoning.
    """
    for opening in openings:
        tag = left_open(renderer, opening)
        if tag is not None:
            under = f" under the system prompt {opening[0].content[:60]!r}" if opening else ""
            raise InputError(
                f"the chat template ends a prompt{under} inside of {tag} although enable_thinking is false, so "
                "responses would be reasoning.",
                code="opens_reasoning",
                field=renderer.source.field,
                hint=_HINT,
            )


def turn_end(renderer: ChatRenderer) -> str | None:
    """Return the control token that a template ends a response with; None if it ends one with none.

    Args:
        renderer: Renders by the template.
    """
    after = (renderer.probed(generate=False) or "").rpartition(PROBE_ANSWER.content)[2]
    places = renderer.control_tokens.places(after)
    if not places or after[: places[0][0]].strip():
        return None
    return after[slice(*places[0])]


def stop_token_ids(renderer: ChatRenderer, *holders: Any) -> frozenset[int]:
    """Collect the ids that end a response: those of the settings, and that of the token with which the template does.

    Args:
        renderer: Renders by the template.
        holders: Tokenizer, configurations and generation settings; each may have ``eos_token_id``, one id or several.
    """
    ids: set[int] = set()
    for holder in holders:
        value = getattr(holder, "eos_token_id", None)
        ids.update(value if isinstance(value, list | tuple) else [value] if value is not None else [])
    # The settings of many checkpoints name the end of a document alone, and their model ends its turn otherwise.
    end = turn_end(renderer)
    ids.update([] if end is None else [renderer.id_of(end)])
    return frozenset(int(i) for i in ids)


def require_pinned_on_server(renderer: ChatRenderer) -> None:
    """Refuse a template with which a server would write today's date, whatever a request says.

    Args:
        renderer: Renders by the template.

    Raises:
        InputError: The template asks the clock even though it is given a date.
    """
    if any(renderer.asks_clock(opening) for opening in ((), (PROBE_SYSTEM,))):
        raise InputError(
            "the chat template writes today's date, which no request can change: the server would generate under "
            "another prompt than is captured.",
            code="clock_in_template",
            field="generation.endpoint",
            hint="Start the server with a copy of the template that has a fixed date (vLLM: --chat-template), and name "
            "the same file in model.chat_template; or let the workers generate.",
        )
