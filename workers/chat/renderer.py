"""Render the messages of a chat to token ids with the model's chat template.

The peculiarities of templates are handled here and nowhere else: templates without a system role (the system prompt is
put in front of the user's message), templates that insert a default system prompt (they still do when there is none, as
when the model is deployed), reasoning (switched off where the template can), and today's date (pinned). Does not import
torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from ...jobs.errors import InputError
from ...jobs.messages import ChatMessage

PINNED_DATE = "01 Jan 2026"
"""The date that templates write instead of today's, so that a run does not depend on the day it is started."""

_PROBE_SYSTEM = "Zq7 system probe"
_PROBE_QUESTION = "Zq7 question probe"
_OTHER_QUESTION = "(another)"


class ChatRenderer:
    """Renders prompts for one model.

    Args:
        tokenizer: A transformers tokenizer.

    Raises:
        InputError: It has no chat template, or its template cannot render a question.

    Attributes:
        has_system_role: Whether the template renders system messages; if not, their text is put in front of the user's
            message.
        inserted_system_text: Whether the template inserts a default system prompt when none is given.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "the tokenizer has no chat template, so this model cannot be prompted with messages.",
                code="no_chat_template",
                field="model.source",
                hint="Use the instruction-tuned version of the model, or save a chat template with its tokenizer.",
            )
        self._tokenizer = tokenizer
        try:
            # Some tokenizers have several templates; this selects the one for conversations without tools.
            self._template = _with_pinned_date(str(tokenizer.get_chat_template()))
        except ValueError as error:
            raise InputError(
                f"the tokenizer has no chat template for plain conversations: {error}.",
                code="no_chat_template",
                field="model.source",
                hint="Name one of its templates 'default'.",
            ) from error
        self.has_system_role = self._shows_system()
        self.inserted_system_text = self._inserts_system()

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids of a prompt: the chat up to where the response starts.

        Args:
            messages: The chat so far; ends with the user's message.

        Raises:
            TemplateError: The template rejects the messages.
            ValueError: The model has no system role, and no user message follows a system message.
        """
        return list(
            self._tokenizer.apply_chat_template(
                self.for_template(messages), tokenize=True, return_dict=False, **self._options()
            )
        )

    def shared_prefix(self, before: Sequence[ChatMessage]) -> list[int]:
        """Return the token ids that prompts with the same first messages have in common.

        Not exact: a tokenizer may merge the start of the next message with the text before it. Compare with the actual
        prompt before relying on it.

        Args:
            before: The messages that the chats have in common; may be empty.
        """
        one, other = (self.render([*before, ChatMessage("user", text)]) for text in (_PROBE_QUESTION, _OTHER_QUESTION))
        pairs = zip(one, other, strict=False)
        return one[: next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]

    def for_template(self, messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
        """Convert messages to the form that this model's template accepts.

        If the template has no system role, a system message is put in front of the next user message.

        Args:
            messages: A chat.

        Raises:
            ValueError: The model has no system role, and no user message follows a system message.
        """
        return _for_template(messages, has_system_role=self.has_system_role)

    def text(self, messages: Sequence[dict[str, str]], *, generate: bool) -> str:
        """Render messages to text.

        Args:
            messages: Messages as ``for_template`` returns them.
            generate: Whether to add the header of a response, as before generation.

        Raises:
            TemplateError: The template rejects the messages.
        """
        options = self._options() | {"add_generation_prompt": generate}
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **options))

    @property
    def server_options(self) -> dict[str, Any]:
        """Template options that make a server render as this class does; only those that the template uses."""
        known = {"enable_thinking": False, "date_string": PINNED_DATE}
        return {name: value for name, value in known.items() if name in self._template}

    def describe(self) -> dict[str, Any]:
        """Describe the rendering for the run's record, as plain JSON values."""
        return {
            "chat_template_sha256": hashlib.sha256(self._template.encode()).hexdigest(),
            "has_system_role": self.has_system_role,
            "inserts_system_prompt": self.inserted_system_text,
            "pinned_date": PINNED_DATE,
        }

    def _options(self) -> dict[str, Any]:
        # Templates use the options that they know and ignore the rest.
        return {
            "chat_template": self._template,
            "add_generation_prompt": True,
            "enable_thinking": False,
            "date_string": PINNED_DATE,
        }

    def _probe(self, system_prompt: str, *, has_system_role: bool) -> str:
        """Render a question under a system prompt as for a template with or without a system role."""
        system = [ChatMessage("system", system_prompt)] if system_prompt else []
        messages = [*system, ChatMessage("user", _PROBE_QUESTION)]
        return self.text(_for_template(messages, has_system_role=has_system_role), generate=True)

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
                field="model.source",
                hint="Fix the template in the model's tokenizer files.",
            ) from error
        if not self.has_system_role:
            return False
        full = self._probe(_PROBE_SYSTEM, has_system_role=True)
        # Compare the text before the question without a system prompt and with one whose content is cut out. If the
        # template inserts a default, the former still has a whole system turn, and is at least as long.
        before = bare.split(_PROBE_QUESTION)[0]
        marks = full.split(_PROBE_QUESTION)[0].replace(_PROBE_SYSTEM, "")
        return len(before) >= len(marks)


def _for_template(messages: Sequence[ChatMessage], *, has_system_role: bool) -> list[dict[str, str]]:
    taken: list[dict[str, str]] = []
    waiting: list[str] = []
    for message in messages:
        content = message.content
        if message.role == "system" and not has_system_role:
            waiting.append(content)
            continue
        if waiting and message.role == "user":
            content = "\n\n".join([*waiting, content])
            waiting = []
        taken.append({"role": message.role, "content": content})
        if waiting:
            break
    if waiting:
        raise ValueError("the model has no system role, so a system prompt needs a user's message after it")
    return taken


def _with_pinned_date(template: str) -> str:
    """Pin the date of a template that reads the clock, by a macro that shadows the function ``strftime_now``."""
    if "strftime_now" not in template:
        return template
    return "{%- macro strftime_now(format) -%}" + PINNED_DATE + "{%- endmacro -%}" + template


def stop_token_ids(tokenizer: Any, *configs: Any) -> frozenset[int]:
    """Collect the ids that end a response: end of sequence by tokenizer, configuration and generation settings."""
    ids: set[int] = set()
    for holder in (tokenizer, *configs):
        value = getattr(holder, "eos_token_id", None)
        ids.update(value if isinstance(value, list | tuple) else [value] if value is not None else [])
    return frozenset(int(i) for i in ids)
