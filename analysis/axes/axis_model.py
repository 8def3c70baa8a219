"""The model that an axis belongs to, and which other models it may be used on. Pure values; opens nothing."""

from __future__ import annotations

from dataclasses import dataclass

from ...jobs.errors import InputError
from ...jobs.specs.spec_parts import ModelSpec
from ...jobs.wording import count_of


@dataclass(frozen=True)
class AxisModel:
    """The model that an axis belongs to, as far as its source tells.

    Attributes:
        source: Hugging Face id, directory or ``package://`` URL; None where the files do not name the model.
        n_layers: Decoder layers.
        d_model: Width of the residual stream.
        revision: Branch, tag or commit of a Hugging Face id; None: not told.
        fingerprint: As in ``ModelFacts``; empty where the files do not have it.
        spec: The section ``model`` of the run's spec, with which the run loaded it; None where there is no run.
        chat_template: Text of the chat template that the run used instead of the model's; None: the model's.
    """

    source: str | None
    n_layers: int
    d_model: int
    revision: str | None = None
    fingerprint: str = ""
    spec: ModelSpec | None = None
    chat_template: str | None = None


def require_shape(
    own: AxisModel,
    name: str,
    *,
    n_layers: int,
    d_model: int,
    source: str,
    field: str = "--model",
    may_be_deeper: bool = False,
) -> None:
    """Refuse a model that is not as wide and as deep as the axis's: no number of one would mean anything there.

    Args:
        own: The axis's model.
        name: Where the axis is from, for errors.
        n_layers: Decoder layers of the model.
        d_model: Width of its residual stream.
        source: Where it is from, as the user names it.
        field: Option or field that names the model, for errors.
        may_be_deeper: Whether the axis's model is only known to have at least ``own.n_layers``.

    Raises:
        InputError: It is not.
    """
    is_deep = n_layers >= own.n_layers if may_be_deeper else n_layers == own.n_layers
    if d_model == own.d_model and is_deep:
        return
    raise InputError(
        f"{source} has {count_of(n_layers, 'layer')} x {d_model}, and the axis of {name} belongs to a model of "
        f"{own.n_layers} x {own.d_model}.",
        code="other_width",
        field=field,
        hint=f"Name the axis's own model{f', {own.source}' if own.source else ''}, or another axis.",
    )


def require_same(
    own: AxisModel, name: str, *, source: str, fingerprint: str = "", transfer: bool = False, field: str = "--model"
) -> str | None:
    """Refuse a model that is not the axis's, unless the axis is meant to be transferred to it.

    Args:
        own: The axis's model.
        name: Where the axis is from, for errors.
        source: Where the model is from, as the user names it.
        fingerprint: Its fingerprint; empty if it is not known.
        transfer: Whether another model is meant.
        field: Option or field that names the model, for errors.

    Returns:
        None for the axis's own model; else a sentence for every output that shows numbers of both.

    Raises:
        InputError: It is another model.

    Example:
        >>> require_same(AxisModel("org/Model", 4, 16), "runs/made", source="/models/model") is None
        True
    """
    if own.fingerprint and fingerprint:
        is_same = own.fingerprint == fingerprint
    else:
        is_same = own.source is None or ends_alike(own.source, source)
    if is_same:
        return None
    if not transfer:
        raise InputError(
            f"{source} is not the model of the axis in {name}, which is {own.source}.",
            code="other_model",
            field=field,
            hint="--transfer says that it is meant, for a base model or a fine-tune; every output then says so.",
        )
    return f"Transferred: the axis is of {own.source}, and the projections are of {source}."


def ends_alike(source: str, other: str) -> bool:
    """Whether two names of a model end alike, as the id of one on the hub and a directory with a copy of it do.

    Args:
        source: A Hugging Face id or a directory.
        other: Another.

    Example:
        >>> ends_alike("Qwen/Qwen3-32B", "/models/qwen3-32b/"), ends_alike("Qwen/Qwen3-32B", "Qwen/Qwen3-8B")
        (True, False)
    """
    return _last_part(source) == _last_part(other)


def _last_part(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1].lower()
