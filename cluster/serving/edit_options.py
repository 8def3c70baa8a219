"""What a request or a command line asks to be done along the axis, as settings. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ...jobs.errors import InputError
from ...jobs.specs.interventions_spec import EditSetting

EDIT_FIELDS = ("cap", "steer", "ablate", "layers", "positions")
"""Fields of a request, and options of a command, that say what is done along the axis; see ``EditSetting``."""


def edit_settings(given: dict[str, Any], name: str = "{}") -> tuple[EditSetting, ...]:
    """Make one setting of each of cap, steer and ablate that is asked for, all at the same layers and positions.

    Args:
        given: Those of ``EDIT_FIELDS`` that are given, as users write them; None counts as not given.
        name: How a field is called in errors: ``{}`` is replaced by its name.

    Raises:
        InputError: A value is none that its field takes, or layers or positions are given for nothing.

    Example:
        >>> [setting.kind for setting in edit_settings({"cap": "p0.25", "steer": -0.1, "layers": "14:16"})]
        ['cap', 'steer']
        >>> edit_settings({"cap": None})
        ()
    """
    asked = {field: value for field, value in given.items() if value is not None}
    kinds = [kind for kind in ("cap", "steer", "ablate") if kind in asked]
    where = {field: asked[field] for field in ("layers", "positions") if field in asked}
    if where and not kinds:
        raise InputError(
            "has no effect: nothing is done along the axis.",
            code="no_effect",
            field=name.format(next(iter(where))),
            hint=f"Give {name.format('cap')} or {name.format('steer')} too.",
        )
    return tuple(_setting({kind: asked[kind], **where}, name) for kind in kinds)


def as_field(name: str, text: str | None) -> Any:
    """Read an option of a command as the value of the field of that name.

    Args:
        name: One of ``EDIT_FIELDS``.
        text: What the user wrote; None where the option is not given.

    Example:
        >>> as_field("layers", "3,5"), as_field("layers", "46:54"), as_field("steer", "absolute:12.5")
        ([3, 5], '46:54', {'absolute': 12.5})
    """
    if text is None:
        return None
    if name == "layers" and all(part.strip().isdecimal() for part in text.split(",")):
        return [int(part) for part in text.split(",")]
    if name == "steer" and text.startswith("absolute:"):
        number = text.removeprefix("absolute:")
        try:
            return {"absolute": float(number)}
        except ValueError:
            return number
    return text


def _setting(fields: dict[str, Any], name: str) -> EditSetting:
    try:
        return EditSetting.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = str(problem["loc"][0]) if problem["loc"] else next(iter(fields))
        message = problem["msg"].removeprefix("Value error, ")
        raise InputError(f"{message}.", code="bad_value", field=name.format(field)) from None
