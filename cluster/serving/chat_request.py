"""The body of a request for a chat completion: the OpenAI protocol's fields, and those that act along the axis.

What the engine cannot do is refused and not ignored, unless a client sends the value that means nothing is asked for.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...jobs.messages import ChatMessage, ChatRole
from ...jobs.specs.spec_parts import MAX_COUNT, MIN_TEMPERATURE
from .edit_options import EDIT_FIELDS

_MOST_STOPS = 16
_MOST_CHOICES = 64

_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that are not supported, each with the values by which nothing is asked for; null is one for all of them."""

_IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
"""Fields that do not change a response."""


class ChatPart(BaseModel):
    """One part of a message's content; only texts are taken."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["text"]
    text: str


class IncomingMessage(BaseModel):
    """One message of the chat, as clients send it; keys that no template reads are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    role: ChatRole
    content: str | list[ChatPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def chat(self) -> ChatMessage:
        """Return the message as templates take it."""
        content = self.content
        text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
        calls = json.dumps(self.tool_calls) if self.tool_calls else None
        return ChatMessage(self.role, text, self.reasoning_content, calls, self.name, self.tool_call_id)


class StreamOptions(BaseModel):
    """What a stream has besides text."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request for a chat completion.

    Attributes:
        model: Name of the served model.
        messages: The chat; the last message is not the assistant's.
        temperature: Sampling temperature; 0 is greedy decoding.
        top_p: Probability mass of the nucleus that is sampled from.
        max_tokens: Most tokens of a response, the end-of-turn token included; None: the server's default.
        max_completion_tokens: The same by its newer name.
        stop: Texts that end a response.
        seed: Makes the response repeatable; None: another one each time.
        n: Number of responses.
        stream: Whether to send text as it comes.
        stream_options: What a stream has besides text.
        cap: See ``EditSetting``, as for the rest; null for none.
        steer: Strength of steering.
        ablate: ``axis`` to remove the component along it.
        layers: Layers that are edited.
        positions: Tokens that are edited.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    model: str
    messages: Annotated[list[IncomingMessage], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    stop: list[str] = []
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    cap: Any = None
    steer: Any = None
    ablate: Any = None
    layers: Any = None
    positions: Any = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, body: Any) -> Any:
        """Drop fields that do not change a response, and null where it means the default."""
        if not isinstance(body, dict):
            return body
        unsupported = {name for name, values in _WITHOUT_EFFECT.items() if body.get(name) in (None, *values)}
        return {
            name: value
            for name, value in body.items()
            if name not in unsupported
            and name not in _IGNORED
            and (value is not None or name in EDIT_FIELDS or name not in cls.model_fields)
        }

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, stop: Any) -> Any:
        stops = [stop] if isinstance(stop, str) else stop
        if isinstance(stops, list) and ("" in stops or len(stops) > _MOST_STOPS):
            raise ValueError(f"must be a text or a list of at most {_MOST_STOPS} texts, none of them empty")
        return stops

    @field_validator("temperature")
    @classmethod
    def _can_divide(cls, temperature: float) -> float:
        if 0 < temperature < MIN_TEMPERATURE:
            raise ValueError(f"must be 0 (greedy decoding) or at least {MIN_TEMPERATURE:g}")
        return temperature

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[IncomingMessage]) -> list[IncomingMessage]:
        if messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's; a response is always a new message")
        return messages

    @property
    def token_limit(self) -> tuple[str, int] | None:
        """The field that limits the tokens of a response, and its value; None where there is none."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)

    @property
    def edits(self) -> dict[str, Any] | None:
        """What is to be done along the axis; None where the request does not say, and the server's setting holds."""
        named = {name: getattr(self, name) for name in EDIT_FIELDS if name in self.model_fields_set}
        return named or None
