"""Name options and arguments in errors as they are typed; Python and the spec have other names for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ...jobs.errors import AtlasError
from ...jobs.specs.spec import JobSpec
from .options import name_of

_STORE = "store.url"
_SPEC = "spec_file"
_WORDS = f"{__name__}.words"

_PLACES = ("store_url", "store_a", "store_b", "hub_url", "axis", "texts_of", "source", "target", "url")
"""Parameters that may name a store."""

_PARAMETER_OF = {
    "store.endpoint_url": "endpoint_url",
    "model.source": "model",
    "model.chat_template": "chat_template",
    "conversations.source": "conversations",
    "conversations.texts_of": "texts_of",
    "conversations.rendering": "rendering",
    "capture.layers": "layers",
    "capture.poolings": "poolings",
    "capture.token_layers": "token_layers",
}
"""Fields of a spec that some commands make of a parameter, where they read no spec."""


def name_what_was_typed(command: click.Command) -> None:
    """Make the errors of a command, and of those below it, name its options and arguments as they are typed.

    Args:
        command: The command, or a group of them.
    """
    if command.callback is not None:
        command.callback = _naming(command.callback)
        # click keeps the value of an option, and not by which of its names it was given.
        command.parse_args = _keeping_words(command.parse_args)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            name_what_was_typed(below)


def _naming(callback: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(callback)
    def named(*arguments: Any, **options: Any) -> Any:
        try:
            return callback(*arguments, **options)
        except AtlasError as error:
            error.field = _typed(click.get_current_context(), error)
            raise

    return named


def _keeping_words(parse: Callable[[click.Context, list[str]], list[str]]) -> Callable[..., list[str]]:
    @wraps(parse)
    def kept(ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = tuple(args)
        return parse(ctx, args)

    return kept


def _name_in(context: click.Context, parameter: click.Parameter) -> str:
    """Return the name of a parameter: of an option with several, the one that was typed last, which click takes."""
    names = set(parameter.opts) if isinstance(parameter, click.Option) else set()
    typed = [word.partition("=")[0] for word in context.meta.get(_WORDS, ())]
    return next((word for word in reversed(typed) if word in names), name_of(parameter))


def _typed(context: click.Context, error: AtlasError) -> str | None:
    """Return the name of what was typed, or the field as it is where none is known to be meant."""
    field = error.field
    known = {parameter.name: parameter for parameter in context.command.params}
    if field is None:
        return None
    # One name may be both: the model of a spec, and --model, the judge's.
    if field in known and not (_SPEC in known and field in JobSpec.model_fields):
        return _name_in(context, known[field])
    overrides = context.params.get("overrides") or ()
    if _SPEC in known or any(str(override).startswith(field) for override in overrides):
        return field
    if field == _STORE:
        return _store(context, error)
    # An entry of a list is named by its number.
    name = next((name for of, name in _PARAMETER_OF.items() if field == of or field.startswith(f"{of}.")), "")
    is_given = name in known and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    return _name_in(context, known[name]) if is_given else field


def _store(context: click.Context, error: AtlasError) -> str:
    """Name the parameter whose store an error is about: the only one, or that of which the error has the address."""
    given = {
        parameter: str(context.params[parameter.name])
        for parameter in context.command.params
        if parameter.name in _PLACES and context.params.get(parameter.name)
    }
    text = f"{error.message} {error.file or ''}"
    addressed = [
        parameter
        for parameter, value in sorted(given.items(), key=lambda item: -len(item[1]))
        if value in text or os.path.abspath(os.path.expanduser(value)) in text  # noqa: PTH100, PTH111 - any text
    ]
    if addressed:
        return name_of(addressed[0])
    return name_of(next(iter(given))) if len(given) == 1 else _STORE
