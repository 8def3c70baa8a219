"""Chat templates that come with this project, for models and texts without one: ``builtin:NAME`` in a spec."""

from __future__ import annotations

from typing import get_args

from ...jobs.errors import InputError
from ...jobs.specs.spec_parts import BUILTIN_TEMPLATE_SCHEME, BuiltinTemplate

_PLAIN = """\
{{- sequence_start -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] | trim + '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- 'User:\\n' + message['content'] | trim + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Assistant:\\n' + message['content'] | trim + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}
"""
"""A conversation as plain lines that name the speaker, without control tokens but those that begin every text."""

COMPLETION = """\
{{- sequence_start -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' or message['role'] == 'assistant' -%}{{- message['content'] -}}{%- endif -%}
{%- endfor -%}
"""
"""The messages as one text, as the tokenizer begins every text; see ``completion.CompletionRenderer``."""

_TEMPLATES: dict[BuiltinTemplate, str] = {"plain": _PLAIN, "completion": COMPLETION}


def builtin_template(source: str, field: str) -> str | None:
    """Return the text of a template that is named ``builtin:NAME``; None for anything else, such as a file.

    Args:
        source: What a spec has in ``model.chat_template``.
        field: The field, for the error.

    Raises:
        InputError: There is no template of that name.

    Example:
        >>> "Assistant:" in builtin_template("builtin:plain", "model.chat_template")
        True
        >>> builtin_template("chat.jinja", "model.chat_template") is None
        True
    """
    if not source.startswith(BUILTIN_TEMPLATE_SCHEME):
        return None
    found = {BUILTIN_TEMPLATE_SCHEME + name: text for name, text in _TEMPLATES.items()}
    if source not in found:
        raise InputError(
            f"there is no built-in chat template {source!r}.",
            code="no_such_template",
            field=field,
            hint=f"There is {' and '.join(BUILTIN_TEMPLATE_SCHEME + name for name in get_args(BuiltinTemplate))}.",
        )
    return found[source]
