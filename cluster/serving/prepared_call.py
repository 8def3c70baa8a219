"""From a request for a chat completion to requests for the engine, checked before they reach its batch.

A request that the engine refuses would stop others from joining the batch, so nothing that can be told beforehand is
left to it: the chat is rendered, its tokens are counted, and what acts along the axis is resolved here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...jobs.errors import InputError
from ...jobs.interventions import Intervention
from ...jobs.messages import ChatMessage
from ...jobs.specs.interventions_spec import EditSetting
from ...jobs.specs.spec_parts import SamplingSpec
from ...jobs.work.addresses import RolloutAddress
from ...jobs.work.units import RolloutRequest
from .chat_request import ChatRequest
from .edit_options import edit_settings
from .engine_loop import Event, LiveRequest
from .live_model import LiveModel


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A chat that the model can answer.

    Attributes:
        call_id: Unique among the calls of a process.
        messages: The chat.
        sampling: How tokens are sampled, and at most how many.
        seed: Decides the responses, together with the index of each.
        settings: What is done along the axis.
        intervention: The same as edits; None for nothing.
        stops: Texts that end a response.
        num_choices: Number of responses.
    """

    call_id: str
    messages: tuple[ChatMessage, ...]
    sampling: SamplingSpec
    seed: int
    settings: tuple[EditSetting, ...] = ()
    intervention: Intervention | None = None
    stops: tuple[str, ...] = ()
    num_choices: int = 1

    def live(self, model: LiveModel, index: int, tell: Callable[[Event], None]) -> LiveRequest:
        """Make the request for one of its responses.

        Args:
            model: The model that answers.
            index: Index of the response.
            tell: See ``LiveRequest``.
        """
        address = RolloutAddress("conversation", self.call_id, "pos", 0, 0, index)
        # The seed must not depend on the call's id: the same request has the same response.
        seed = RolloutAddress("conversation", "chat", "pos", 0, 0, index).seed(self.seed)
        request = RolloutRequest(address, self.messages, seed, intervention=self.intervention)
        return LiveRequest(request, self.sampling, model.decode, tell, self.stops)

    def placed(self, model: LiveModel, place: dict[str, Any]) -> dict[str, Any]:
        """Build the ``persona_atlas`` object of a response.

        Args:
            model: The model that answered.
            place: Where the response lies; see ``Place.as_dict``.
        """
        note = {} if model.note is None else {"note": model.note}
        asked = [setting.asked for setting in self.settings]
        return place | {"compared_with": model.placing.others, "interventions": asked} | note


def prepare_call(
    request: ChatRequest, model: LiveModel, defaults: tuple[EditSetting, ...], default_tokens: int
) -> PreparedCall:
    """Check a request and make everything of it that the engine needs. May read the store of the axis.

    Args:
        request: The request.
        model: The model that answers.
        defaults: What is done along the axis where the request does not say.
        default_tokens: Most tokens of a response where the request does not say, if the context has room for them.

    Raises:
        InputError: The template cannot render the chat, it is longer than the context, or the axis does not have what
            is asked for; names the field.
    """
    messages = tuple(message.chat() for message in request.messages)
    settings = defaults if request.edits is None else edit_settings(request.edits)
    return PreparedCall(
        call_id=f"chatcmpl-{secrets.token_hex(12)}",
        messages=messages,
        sampling=SamplingSpec(
            temperature=request.temperature,
            top_p=request.top_p,
            max_new_tokens=_token_limit(request.token_limit, model.prompt_length(messages), model, default_tokens),
        ),
        seed=secrets.randbits(62) if request.seed is None else request.seed,
        settings=settings,
        intervention=model.intervention(settings),
        stops=tuple(request.stop),
        num_choices=request.n,
    )


def _token_limit(asked: tuple[str, int] | None, prompt: int, model: LiveModel, default: int) -> int:
    room = model.max_context - prompt
    if room < 1:
        raise InputError(
            f"the chat has {prompt} tokens, and the model's context of {model.max_context} leaves none for a response.",
            code="too_long",
            field="messages",
            hint="Shorten it.",
        )
    if asked is None:
        return min(default, room)
    field, limit = asked
    if limit > room:
        raise InputError(
            f"{limit} tokens after a chat of {prompt} exceed the model's context of {model.max_context}.",
            code="too_long",
            field=field,
            hint=f"Ask for at most {room}.",
        )
    return limit
