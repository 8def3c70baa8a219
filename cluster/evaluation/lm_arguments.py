"""Arguments of the model ``persona_atlas`` of lm-evaluation-harness, as ``--model_args`` gives them. Pure.

The harness passes on what it is given, reads numbers and truth values out of the texts, and looks at few of them before
it uses them.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Any

from ...jobs.errors import InputError, closest
from ...jobs.sizing.estimate import BYTES_PER_PARAMETER
from ..serving.edit_options import EDIT_FIELDS

LOADING = ("store", "model", "reduction", "transfer", "chat_template", "dtype", "device", *EDIT_FIELDS)
"""Arguments of ``load_with_edits``."""

OF_HARNESS = (
    "batch_size",
    "max_batch_size",
    "max_length",
    "truncation",
    "logits_cache",
    "softmax_dtype",
    "mixed_precision_dtype",
    "add_bos_token",
    "prefix_token_id",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)
"""Arguments of the harness's ``hf`` model that mean something for a model that is loaded already."""

_WHOLE = ("max_length", "max_batch_size", "prefix_token_id")
_SWITCHES = ("transfer", "truncation", "logits_cache", "add_bos_token", "enable_thinking")
_DEFAULTS: dict[str, tuple[Any, ...]] = {"batch_size": (1, "1"), "max_batch_size": (), "device": ("cuda:0",)}
"""Options of the harness's command that it passes on beside the arguments, with what they are if they are not given."""


def refuse_unknown(given: dict[str, Any], of_harness: AbstractSet[str]) -> None:
    """Refuse an argument that nothing would read: a misspelt cap would leave the model as it is.

    Args:
        given: All arguments, ``store`` among them.
        of_harness: Those of ``OF_HARNESS`` that this version of the harness has.

    Raises:
        InputError: One is not known, or there is no store.
    """
    if given["store"] is None:
        raise InputError(
            "is missing: it names the axis, and by it the model.",
            code="missing_key",
            field="store",
            hint="For example --model_args store=runs/demo,cap=p0.25,layers=14:18.",
        )
    known = {*LOADING, *of_harness}
    for name in given:
        if name not in known:
            raise InputError(
                "is no argument of the model persona_atlas.",
                code="unknown_key",
                field=name,
                hint=closest(name, known) or f"It has {', '.join(sorted(known))}.",
            )


def merged(arguments: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Put arguments of the model and options of the harness's command together; an argument counts where both are.

    Args:
        arguments: Those of ``--model_args``.
        options: What the command passes on beside them; None for what is not given.

    Raises:
        InputError: An option that was given has another value than the argument of its name.

    Example:
        >>> merged({"store": "runs/demo", "batch_size": 4}, {"batch_size": 1, "device": None})
        {'batch_size': 4, 'store': 'runs/demo'}
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in sorted(given.keys() & arguments.keys()):
        if given[name] not in _DEFAULTS.get(name, ()) and str(given[name]) != str(arguments[name]):
            raise InputError(
                f"is {arguments[name]} in --model_args and {given[name]} in --{name}.",
                code="bad_value",
                field=name,
                hint="Give it once.",
            )
    return given | arguments


def refuse_other_types(given: dict[str, Any]) -> None:
    """Refuse values of another type, which the harness would stumble over while it asks, or take for true.

    Args:
        given: The arguments, as the harness reads them.

    Raises:
        InputError: One is of another type; names it.
    """
    for name, value in given.items():
        what = _wanted(name, value)
        if value is not None and what is not None:
            raise InputError(
                f"is {value!r}, which is not {what}.",
                code="bad_value",
                field=name,
                hint="--model_args are name=value,name=value.",
            )


def _wanted(name: str, value: Any) -> str | None:
    """Say what a value must be that it is not; None where it may be what it is."""
    if name in _WHOLE:
        least = 0 if name == "prefix_token_id" else 1
        is_right = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if is_right else f"a whole number of at least {least}"
    if name in _SWITCHES:
        return None if isinstance(value, bool) else "True or False"
    if name == "batch_size":
        return None if re.fullmatch(r"[1-9][0-9]*|auto(:[1-9][0-9]*)?", str(value)) else "a whole number, or auto"
    if name in ("softmax_dtype", "mixed_precision_dtype"):
        return None if value in BYTES_PER_PARAMETER else f"one of {', '.join(BYTES_PER_PARAMETER)}"
    if name == "chat_template_args":
        return None if isinstance(value, dict) else "an object"
    if name in ("model", "reduction", "chat_template", "dtype", "device"):
        return None if isinstance(value, str) else "a text"
    return None
