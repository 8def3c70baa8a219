"""Resolve what a user asks for along an axis to edits of the residual stream, with the numbers of the axis. Pure.

Used for the section ``interventions`` of a spec, and wherever one request is steered or capped. Numbers are in axis
sign: higher is nearer the Assistant. Axes: L layers, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ...jobs.errors import InputError
from ...jobs.interventions import Ablate, AddVector, Cap, Direction, Edit, Intervention, Positions
from ...jobs.specs.interventions_spec import AbsoluteStrength, EditSetting, layers_of
from ...jobs.wording import count_of
from ..axis_source import AxisSource
from ..capping import recommended_window
from ..exchange.capping_file import ReleasedCap

MOST_NORMS = 10.0
"""Largest strength of steering, in norms of the layer: what is added would be nearly all that is left."""

HOOK_POINT = "resid_post"
"""Where edits act: on the output of a decoder layer. An axis from elsewhere is another direction."""


def resolve(setting: EditSetting, axis: AxisSource, n_layers: int, d_model: int, *, prefix: str = "") -> Intervention:
    """Resolve one setting to edits.

    The caller checks that the axis belongs to the model (``AxisSource.require_model``); here only their shapes are.

    Args:
        setting: What to do along the axis.
        axis: The axis, with thresholds where the setting names a percentile, and norms where it names a fraction.
        n_layers: Decoder layers of the model that is edited.
        d_model: Width of its residual stream.
        prefix: What precedes the name of a field in errors, such as ``interventions.0.``.

    Returns:
        One edit for each layer, in ascending order.

    Raises:
        InputError: The axis is of another shape or hook point or has none at a layer, a layer is outside of the model,
            the percentile was not computed, the norm is not known, or the strength is more than ``MOST_NORMS`` norms;
            names the field.

    Example:
        >>> from persona_atlas import reduce
        >>> from persona_atlas.analysis.axis_source import open_axis
        >>> _ = reduce("runs/demo", progress=False)
        >>> found = resolve(EditSetting(cap="p0.25", layers="14:16"), open_axis("runs/demo"), 30, 576)
        >>> [(edit.layer, edit.positions) for edit in found.edits]
        [(14, 'all'), (15, 'all')]
    """
    _require_shape(axis, n_layers, d_model, prefix)
    layers = _layers(setting, axis, n_layers, prefix)
    return Intervention(tuple(_edit(setting, axis, layer, prefix) for layer in layers))


def resolve_released(
    caps: Sequence[ReleasedCap],
    n_layers: int,
    d_model: int,
    *,
    source: str,
    positions: Positions = "all",
    prefix: str = "",
) -> Intervention:
    """Resolve a setting of a released capping file to edits that act as the released formula.

    h <- h - u * max(<h, u> - c, 0), with u the released vector of length one and c the released cap: a floor of -c on
    -u, which is the same operation.

    Args:
        caps: What the setting does, by layer.
        n_layers: Decoder layers of the model that is edited.
        d_model: Width of its residual stream.
        source: Path or URL of the file, for errors.
        positions: Tokens that are edited; the released code edits all.
        prefix: What precedes the name of a field in errors.

    Raises:
        InputError: A vector is of another width, or of a layer that the model does not have.

    Example:
        >>> import numpy as np
        >>> cap = ReleasedCap(2, np.array([0.0, -1.0], np.float32), cap=-3.0)
        >>> resolve_released([cap], n_layers=4, d_model=2, source="capping_config.pt").edits[0].floor
        3.0
    """
    for cap in caps:
        if len(cap.vector_D) != d_model or not 0 <= cap.layer < n_layers:
            raise InputError(
                f"{source} caps layer {cap.layer} with a vector of {len(cap.vector_D)} numbers, and the model has "
                f"{count_of(n_layers, 'layer')} x {d_model}.",
                code="other_width",
                field=f"{prefix}axis",
                hint="Name the capping file of the model that the job runs.",
            )
    return Intervention(tuple(Cap.ceiling(cap.layer, Direction.of(cap.vector_D), cap.cap, positions) for cap in caps))


def _require_shape(axis: AxisSource, n_layers: int, d_model: int, prefix: str) -> None:
    axis.require_shape(n_layers=n_layers, d_model=d_model, source="the model", field=f"{prefix}axis")
    if axis.hook_point != HOOK_POINT:
        raise InputError(
            f"{axis.name} has the axis of {axis.hook_point}, and edits act at {HOOK_POINT}.",
            code="other_hook_point",
            field=f"{prefix}axis",
            hint=f"Name a reduction of {HOOK_POINT}.",
        )


def _layers(setting: EditSetting, axis: AxisSource, n_layers: int, prefix: str) -> tuple[int, ...]:
    if setting.layers is not None:
        layers = layers_of(setting.layers, n_layers, axis.middle)
    elif setting.kind == "cap":
        layers = tuple(recommended_window(n_layers))
    else:
        layers = (axis.middle,) if setting.kind == "steer" else tuple(range(n_layers))
    beyond = [layer for layer in layers if layer >= n_layers]
    if beyond:
        raise InputError(
            f"{setting.layers!r} is outside of the model, which has {count_of(n_layers, 'layer')}.",
            code="no_such_layer",
            field=f"{prefix}layers",
            hint=f"Layers are counted from 0 to {n_layers - 1}, and the end of a range is not included.",
        )
    return layers


def _edit(setting: EditSetting, axis: AxisSource, layer: int, prefix: str) -> Edit:
    with _in_field(f"{prefix}layers"):
        direction = Direction.of(axis.unit_D(layer))
    if setting.cap is not None:
        return Cap(layer, direction, _floor(setting.cap, axis, layer, prefix), setting.positions)
    if setting.steer is not None:
        return AddVector(layer, direction, _coefficient(setting.steer, axis, layer, prefix), setting.positions)
    return Ablate(layer, direction, setting.positions)


def _floor(cap: str | float, axis: AxisSource, layer: int, prefix: str) -> float:
    if not isinstance(cap, str):
        return cap
    with _in_field(f"{prefix}cap"):
        return axis.floor(layer, cap)


def _coefficient(steer: float | AbsoluteStrength, axis: AxisSource, layer: int, prefix: str) -> float:
    norm = axis.norm(layer)
    is_known = math.isfinite(norm) and norm > 0
    if not isinstance(steer, AbsoluteStrength) and not is_known:
        raise InputError(
            f"is a fraction of the norm of layer {layer}, which is not known: {axis.name} has no moments of "
            "activations.",
            code="no_norm",
            field=f"{prefix}steer",
            hint="Give the strength in units of the residual stream, as {absolute: 12.5}, or name a run as the axis. "
            "One that an earlier version reduced has them once it is reduced again.",
        )
    # The last bits of a norm depend on the machine that adds up its squares, and coefficients identify a run.
    added = steer.absolute if isinstance(steer, AbsoluteStrength) else float(np.float32(steer * norm))
    if is_known and abs(added) > MOST_NORMS * norm:
        raise InputError(
            f"adds {added:.4g} at layer {layer}, whose activations have a norm of {norm:.4g}: {abs(added) / norm:.4g} "
            f"times the norm, and at most {MOST_NORMS:g} times are allowed.",
            code="beyond_norm",
            field=f"{prefix}steer",
            hint="Useful strengths are fractions of the norm, from about -0.3 to 1.2.",
        )
    return added


@contextmanager
def _in_field(name: str) -> Iterator[None]:
    """Name the field of the setting in an error that the axis raises, which does not know where it is asked from."""
    try:
        yield
    except InputError as error:
        raise InputError(error.message, code=error.code, field=name, file=error.file, hint=error.hint) from None
