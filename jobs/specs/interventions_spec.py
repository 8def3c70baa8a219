"""The section ``interventions`` of a job spec: edits of the residual stream while the model runs, as users write them.

An entry names an axis and says what to do along it: cap, steer or ablate. ``analysis/intervening`` resolves entries to
the edits of ``jobs/interventions.py`` with the numbers of the axis; here is what can be checked without it. Numbers are
in axis sign: higher is nearer the Assistant.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..files.yaml_file import NO_BOOLEAN
from ..interventions import Positions
from .spec_parts import MAX_COUNT, SpecSection

LayersAsked = Literal["middle", "all"] | str | list[int]
"""``middle``, ``all``, a range with its end excluded such as ``46:54``, or 0-based layers."""

_LABEL = re.compile(r"p(0(?:\.\d+)?|1(?:\.0*)?|\.\d+)")
_RANGE = re.compile(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*")

_LAYERS_HELP = 'must be a range in quotes such as "46:54" (its end is not included), a list of layers, middle or all'
_CAP_HELP = "must be the label of a percentile, such as p0.25, or a number: the floor along the axis"
_STEER_HELP = "must be a number: the fraction of the layer's norm to add along the axis, or {absolute: NUMBER}"


def parse_layers(asked: Any) -> LayersAsked:
    """Check which layers are asked for, without knowing the model.

    Args:
        asked: What the user wrote.

    Returns:
        The same; a range without spaces, and a list in ascending order.

    Raises:
        ValueError: It is none of the forms, an empty range, or names a layer twice.

    Example:
        >>> parse_layers("46:54"), parse_layers([3, 1])
        ('46:54', [1, 3])
    """
    if asked in ("middle", "all"):
        return asked
    if isinstance(asked, str) and (found := _RANGE.fullmatch(asked)):
        first, end = int(found[1]), int(found[2])
        if first >= end:
            raise ValueError("the end of a range is not included, so it must be greater than the first layer")
        return f"{first}:{end}"
    if isinstance(asked, list) and asked and all(_is_layer(layer) for layer in asked):
        if len(set(asked)) < len(asked):
            raise ValueError("a layer is listed twice")
        return sorted(asked)
    if isinstance(asked, int) and not isinstance(asked, bool):
        # YAML 1.1 reads 46:54 as a number to the base 60.
        raise ValueError(f"{_LAYERS_HELP}; YAML reads 46:54 without quotes as the number 2814")
    raise ValueError(_LAYERS_HELP)


def layers_of(asked: LayersAsked, n_layers: int, middle: int) -> tuple[int, ...]:
    """List the layers that are asked for; they may be outside of the model.

    Args:
        asked: As ``parse_layers`` returns it.
        n_layers: Decoder layers of the model.
        middle: The layer that ``middle`` means.

    Example:
        >>> layers_of("2:5", 30, 15), layers_of("middle", 30, 15)
        ((2, 3, 4), (15,))
    """
    if asked == "middle":
        return (middle,)
    if asked == "all":
        return tuple(range(n_layers))
    if isinstance(asked, str):
        first, _, end = asked.partition(":")
        # Bounded by the model, so that a mistyped end is refused for its number and does not fill the memory.
        return tuple(range(int(first), min(int(end), max(int(first), n_layers) + 1)))
    return tuple(asked)


def parse_cap(asked: Any) -> Any:
    """Check a cap: the label of a percentile or a number.

    Args:
        asked: What the user wrote; None for no cap.

    Returns:
        A label in its shortest form, a float, or None.

    Raises:
        ValueError: It is neither.

    Example:
        >>> parse_cap("p0.250"), parse_cap("-12.5"), parse_cap(3)
        ('p0.25', -12.5, 3.0)
    """
    if isinstance(asked, str):
        if found := _LABEL.fullmatch(asked.strip()):
            return f"p{float(found[1]):.12g}"
        try:
            asked = float(asked)
        except ValueError:
            raise ValueError(_CAP_HELP) from None
    return _number(asked, _CAP_HELP)


def parse_steer(asked: Any) -> Any:
    """Check a strength of steering: a fraction of the layer's norm, or a mapping with ``absolute``.

    Args:
        asked: What the user wrote; None for no steering.

    Returns:
        A float, an ``AbsoluteStrength``, or None.

    Raises:
        ValueError: It is neither.

    Example:
        >>> parse_steer("-0.3"), parse_steer({"absolute": 12.5})
        (-0.3, AbsoluteStrength(absolute=12.5))
    """
    if isinstance(asked, AbsoluteStrength):
        return asked
    if isinstance(asked, dict):
        number = _number(asked.get("absolute"), _STEER_HELP)
        if number is None or len(asked) > 1:
            raise ValueError(_STEER_HELP)
        return AbsoluteStrength(absolute=number)
    if isinstance(asked, str):
        try:
            asked = float(asked)
        except ValueError:
            raise ValueError(_STEER_HELP) from None
    return _number(asked, _STEER_HELP)


def _number(asked: Any, otherwise: str) -> float | None:
    if asked is None:
        return None
    if isinstance(asked, bool) or not isinstance(asked, int | float) or abs(asked) > 1e30 or asked != asked:
        raise ValueError(otherwise)
    return float(asked)


def _is_layer(layer: Any) -> bool:
    return isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer <= MAX_COUNT


class AbsoluteStrength(SpecSection):
    """A strength of steering in units of the residual stream.

    Attributes:
        absolute: Length of what is added along the axis; negative: away from the Assistant.
    """

    absolute: Annotated[float, Field(ge=-1e30, le=1e30), NO_BOOLEAN]


class EditSetting(SpecSection):
    """What to do along an axis: exactly one of cap, steer and ablate.

    Attributes:
        cap: Floor of the projection on the axis: the label of a percentile of the axis's run (``p0.25`` is the 25th
            percentile on minus the axis, the 75th in axis sign), or a number in axis sign. None: no cap.
        steer: What to add along the axis, as a fraction of the layer's norm or as ``absolute``; positive toward the
            Assistant. None: no steering.
        ablate: ``axis``: the component along the axis is removed. None: it is not.
        layers: 0-based decoder layers: ``46:54`` (end excluded), a list, ``middle`` or ``all``. None: for a cap the
            recommended window, for steering the middle layer, for an ablation all.
        positions: Tokens that are edited: ``all``, or those of the ``response`` only.

    Example:
        >>> EditSetting(cap="p0.25", layers="46:54").kind
        'cap'
    """

    cap: Annotated[str | float | None, BeforeValidator(parse_cap)] = None
    steer: Annotated[float | AbsoluteStrength | None, BeforeValidator(parse_steer)] = None
    ablate: Literal["axis"] | None = None
    layers: Annotated[LayersAsked, BeforeValidator(parse_layers)] | None = None
    positions: Positions = "all"

    @property
    def kind(self) -> Literal["cap", "steer", "ablate", "experiment"]:
        """What is done."""
        return "cap" if self.cap is not None else "steer" if self.steer is not None else "ablate"

    @property
    def asked(self) -> dict[str, Any]:
        """The fields that are set, as JSON values: what the user asked for."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="after")
    def _does_one_thing(self) -> EditSetting:
        given = [name for name in ("cap", "steer", "ablate") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given)}" if given else "has none of them"
            raise ValueError(f"an entry has one of cap, steer and ablate, and this one {found}")
        return self


class InterventionSpec(EditSetting):
    """One entry of ``interventions``: an axis, and what to do along it.

    Attributes:
        axis: A store with a reduction, a directory or file of published vectors; or with ``experiment`` a released
            capping file or what holds one.
        reduction: Id of a reduction of that store; None: the current one.
        experiment: Name of a setting of a released capping file, such as ``layers_46:54-p0.25``, instead of cap, steer,
            ablate and layers.
        transfer: Whether the axis may be another model's of the same shape, as for a fine-tune.

    Example:
        >>> InterventionSpec(axis="capping_config.pt", experiment="layers_46:54-p0.25").kind
        'experiment'
    """

    axis: Annotated[str, Field(min_length=1)]
    reduction: Annotated[str, Field(min_length=1)] | None = None
    experiment: Annotated[str, Field(min_length=1)] | None = None
    transfer: bool = False

    @property
    def kind(self) -> Literal["cap", "steer", "ablate", "experiment"]:
        """What is done."""
        return "experiment" if self.experiment is not None else super().kind

    @model_validator(mode="after")
    def _does_one_thing(self) -> InterventionSpec:
        if self.experiment is None:
            super()._does_one_thing()  # pyright: ignore[reportCallIssue]
            return self
        beside = [name for name in ("cap", "steer", "ablate", "layers", "reduction") if getattr(self, name) is not None]
        if beside:
            raise ValueError(f"experiment says what is done at which layers: leave out {' and '.join(beside)}")
        return self
