"""Render the messages of a chat to token ids with the model's chat template.

What a template does with messages is found out by rendering: whether it has a system role (if not, the system prompt is
put in front of the user's message), whether it inserts a default system prompt (it still does when there is none, as
when the model is deployed), under which name it reads reasoning, and which tokens are its own. Reasoning is switched
off where the template can, and the date is pinned.
Does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from ...jobs.errors import InputError
from ...jobs.messages import ChatMessage
from .control_tokens import ControlTokens, Rendered, TextEncoder, control_token_names
from .offsets import common_length, offsets_encoder
from .reasoning import REASONING_FIELDS
from .template import CHAT_TEMPLATE_FIELD, PINNED_DATE, TemplateSource, template_sha256

PROBE_SYSTEM = ChatMessage("system", "Zq7 system probe")
PROBE_QUESTION = ChatMessage("user", "Zq7 question probe")
PROBE_ANSWER = ChatMessage("assistant", "Zq7 answer probe")
"""Messages of which chats are made to find out what a template does with theirs."""

_PROBE_SYSTEM, _PROBE_QUESTION = PROBE_SYSTEM.content, PROBE_QUESTION.content
_OTHER_QUESTION = "(another)"
_PROBE_THOUGHT = "Zq7 thought probe"
_PROBE_CLOCK = "Zq7 clock probe"

TemplateMessage = dict[str, Any]
"""A message as a chat template takes it: role, content, and the further fields that are set."""


class ChatRenderer:
    """Renders prompts for one model.

    Args:
        tokenizer: A transformers tokenizer.
        template: Chat template to use instead of the tokenizer's; None: the tokenizer's.

    Raises:
        InputError: It has no chat template, or its template cannot render a question.

    Attributes:
        source: The chat template.
        has_system_role: Whether the template renders system messages; if not, their text is put in front of the user's
            message.
        inserted_system_text: Whether the template inserts a default system prompt when none is given.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self.source = (
            TemplateSource(_template_of(tokenizer))
            if template is None
            else TemplateSource(template, CHAT_TEMPLATE_FIELD)
        )
        self.has_system_role = self._shows_system()
        self.inserted_system_text = self._inserts_system()

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids of a prompt: the chat up to where the response starts.

        Args:
            messages: The chat so far; ends with the user's message.

        Raises:
            InputError: A text spells a control token, and it is a slow tokenizer.
            TemplateError: The template rejects the messages.
            ValueError: The template has no place for a message, or cannot be followed.
        """
        handed = self.for_template(messages)
        if not self.control_tokens.spelt_in(handed):
            return list(self._applied(handed, tokenize=True, return_dict=False, add_generation_prompt=True))
        return self._encoder.encode(self.rendered(handed, generate=True))[0]

    def shared_prefix(self, before: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids that prompts with the same first messages have in common.

        Not exact: a tokenizer may merge the start of the next message with the text before it. Compare with the actual
        prompt before relying on it.

        Args:
            before: The messages that the chats have in common; may be empty.
        """
        one, other = (self.render([*before, ChatMessage("user", text)]) for text in (_PROBE_QUESTION, _OTHER_QUESTION))
        return one[: common_length(one, other)]

    def for_template(self, messages: Sequence[ChatMessage]) -> list[TemplateMessage]:
        """Convert messages to the form that this model's template accepts.

        If the template has no system role, a system message is put in front of the next user message. A developer's
        message is a system message where the template has no branch for that role, and reasoning has the name that the
        template reads.

        Args:
            messages: A chat.

        Raises:
            ValueError: The model has no system role, and no user message follows a system message; or a message has a
                role that the template has no branch for.
        """
        handed = [self._handed(place, message) for place, message in enumerate(messages)]
        return handed if self.has_system_role else _with_system_before_user(handed)

    def text(self, messages: Sequence[TemplateMessage], *, generate: bool, tools: Sequence[Any] | None = None) -> str:
        """Render messages to text.

        Args:
            messages: Messages as ``for_template`` returns them.
            generate: Whether to add the header of a response, as before generation.
            tools: Descriptions of the tools that the model may call; None for none.

        Raises:
            TemplateError: The template rejects the messages.
        """
        more = {"tools": list(tools)} if tools else {}
        return str(self._applied(list(messages), tokenize=False, add_generation_prompt=generate, **more))

    def rendered(
        self, messages: Sequence[TemplateMessage], *, generate: bool, tools: Sequence[Any] | None = None
    ) -> Rendered:
        """Render messages to text, and locate the control tokens that their texts spell; see ``text``.

        Raises:
            TemplateError: The template rejects the messages.
            ValueError: The template depends on a control token in a text in a way that cannot be followed.
        """

        def render(texts: Any) -> str:
            return self.text(texts[0], generate=generate, tools=texts[1])

        texts = [list(messages), tools]
        return self.control_tokens.find(render(texts), texts, render)

    @cached_property
    def control_tokens(self) -> ControlTokens:
        """The control tokens of the model; a text that spells one is ordinary text."""
        rendered = [self.probed(generate=True), self.probed(generate=False), self._probe("", has_system_role=False)]
        plain = "".join(filter(None, rendered))
        return ControlTokens(control_token_names(self._tokenizer, plain))

    @property
    def eos_token_id(self) -> int | None:
        """The id that the tokenizer names as the end of a sequence; None if it names none."""
        return self._tokenizer.eos_token_id

    def id_of(self, token: str) -> int:
        """Return the id of a control token."""
        return int(self._tokenizer.convert_tokens_to_ids(token))

    @cached_property
    def reasoning_field(self) -> str | None:
        """Name under which the template reads the reasoning of an assistant's message; None if it reads none."""
        question = {"role": "user", "content": _PROBE_QUESTION}
        for name in REASONING_FIELDS:
            answer = {"role": "assistant", "content": PROBE_ANSWER.content, name: _PROBE_THOUGHT}
            try:
                if _PROBE_THOUGHT in self.text([question, answer], generate=False):
                    return name
            except TemplateError:
                continue
        return None

    def probed(self, opening: Sequence[ChatMessage] = (PROBE_SYSTEM,), *, generate: bool) -> str | None:
        """Render a question and its answer and, before generation, another question; None where that is rejected.

        Args:
            opening: The system messages before them.
            generate: Whether another question follows, and the header of its response.
        """
        after = (ChatMessage("user", _OTHER_QUESTION),) if generate else ()
        try:
            messages = self.for_template((*opening, PROBE_QUESTION, PROBE_ANSWER, *after))
            return self.text(messages, generate=generate)
        except (TemplateError, ValueError):
            return None

    def asks_clock(self, opening: Sequence[ChatMessage]) -> bool:
        """Whether a prompt depends on the clock although the template is given a date.

        Args:
            opening: The system messages of the prompt.
        """
        if not self.source.asks_clock:
            return False
        messages = self.for_template([*opening, PROBE_QUESTION])
        clocked = self.source.with_clock(_PROBE_CLOCK)
        text = self._applied(messages, tokenize=False, add_generation_prompt=True, chat_template=clocked)
        return _PROBE_CLOCK in str(text)

    @property
    def server_options(self) -> dict[str, Any]:
        """Template options that make a server render as this class does; only those that the template uses."""
        known = {"enable_thinking": False, "date_string": PINNED_DATE}
        return {name: value for name, value in known.items() if name in self.source.source}

    def describe(self) -> dict[str, Any]:
        """Describe the rendering for the run's record, as plain JSON values."""
        return {
            "chat_template_sha256": template_sha256(self.source.source),
            "has_system_role": self.has_system_role,
            "inserts_system_prompt": self.inserted_system_text,
            "pinned_date": PINNED_DATE,
        }

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(offsets_encoder(self._tokenizer), self.control_tokens)

    @cached_property
    def _sequence_start(self) -> str:
        """What the tokenizer puts before every text, such as ``<s>``; this project's own templates write it."""
        whole, alone = (
            self._tokenizer(_PROBE_QUESTION, add_special_tokens=adds)["input_ids"] for adds in (True, False)
        )
        before = next((n for n in range(len(whole)) if whole[n : n + len(alone)] == alone), 0)
        return "".join(self._tokenizer.convert_ids_to_tokens(whole[:before]))

    def _applied(self, messages: Sequence[TemplateMessage], **options: Any) -> Any:
        # Templates use the options that they know and ignore the rest.
        ours = {
            "chat_template": self.source.pinned,
            "enable_thinking": False,
            "date_string": PINNED_DATE,
            "sequence_start": self._sequence_start,
        }
        try:
            return self._tokenizer.apply_chat_template(messages, **(ours | options))
        except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            # What a template computes with messages that it was not written for may fail in Python.
            raise TemplateError(f"{type(error).__name__}: {error}") from error

    def _handed(self, place: int, message: ChatMessage) -> TemplateMessage:
        role: str = message.role
        if role == "developer" and not self.source.names(role):
            role = "system"
        if role == "tool" and not self.source.names(role):
            raise ValueError(f"it has no branch for messages of the role tool, as message {place} is")
        handed: TemplateMessage = {"role": role, "content": message.content} | message.more()
        if message.reasoning is not None and self.reasoning_field is not None:
            handed[self.reasoning_field] = message.reasoning
        return handed

    def _probe(self, system_prompt: str, *, has_system_role: bool) -> str:
        """Render a question under a system prompt as for a template with or without a system role."""
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        messages = [*system, {"role": "user", "content": _PROBE_QUESTION}]
        return self.text(messages if has_system_role else _with_system_before_user(messages), generate=True)

    def _shows_system(self) -> bool:
        try:
            return _PROBE_SYSTEM in self._probe(_PROBE_SYSTEM, has_system_role=True)
        except TemplateError:
            return False

    def _inserts_system(self) -> bool:
        try:
            bare = self._probe("", has_system_role=False)
        except TemplateError as error:
            raise InputError(
                f"the chat template cannot render a question: {error}.",
                code="bad_chat_template",
                field=self.source.field,
                hint="Fix the template, or give another one in model.chat_template.",
            ) from error
        if _PROBE_QUESTION not in bare:
            raise InputError(
                "the chat template does not write the user's message.",
                code="bad_chat_template",
                field=self.source.field,
                hint="Its messages are those of the variable messages, each with role and content.",
            )
        if not self.has_system_role:
            return False
        full = self._probe(_PROBE_SYSTEM, has_system_role=True)
        # Compare the text before the question without a system prompt and with one whose content is cut out. If the
        # template inserts a default, the former still has a whole system turn, and is at least as long.
        before = bare.split(_PROBE_QUESTION)[0]
        marks = full.split(_PROBE_QUESTION)[0].replace(_PROBE_SYSTEM, "")
        return len(before) >= len(marks)


def _template_of(tokenizer: Any) -> str:
    """Return the tokenizer's chat template for conversations without tools."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template, so this model cannot be prompted with messages.",
            code="no_chat_template",
            field="model.source",
            hint="Use the instruction-tuned version of the model, or name a template's file in model.chat_template.",
        )
    try:
        # Some tokenizers have several templates.
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise InputError(
            f"the tokenizer has no chat template for plain conversations: {error}.",
            code="no_chat_template",
            field="model.source",
            hint="Name one of its templates 'default', or name a template's file in model.chat_template.",
        ) from error


def _with_system_before_user(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Put every system message in front of the next of the user."""
    taken: list[TemplateMessage] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
            continue
        if waiting and message["role"] == "user":
            message = message | {"content": "\n\n".join([*waiting, message["content"]])}
            waiting = []
        taken.append(message)
        if waiting:
            break
    if waiting:
        raise ValueError("the model has no system role, so a system prompt needs a user's message after it")
    return taken
