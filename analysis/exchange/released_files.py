"""Write vectors as the released files of the Assistant Axis, which the released code loads.

``assistant_axis.pt``, ``default_vector.pt``, ``role_vectors/<role>.pt`` and ``trait_vectors/<trait>.pt`` are one
bfloat16 tensor ``(n_layers, d_model)`` each; row L belongs to the output of decoder layer L, 0-based.
``capping_config.pt`` holds ``vectors`` (by name: ``vector`` of length one, along *minus* the axis, and ``layer``) and
``experiments`` (``id`` and ``interventions``, each the name of a vector and ``cap``, an upper bound of the projection
on it).
Axes: P roles, T traits, L layers, D d_model.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError
from ...jobs.wording import count_of
from ...storage.derived.reductions import Reduction
from ...storage.format.layout import CAPPING_CONFIG
from ..capping import CappingSetting, capping_settings
from ..thresholds import Thresholds

AXIS_FILE = "assistant_axis.pt"
DEFAULT_FILE = "default_vector.pt"
ROLES_FOLDER = "role_vectors"
TRAITS_FOLDER = "trait_vectors"

_SAY_EVERY = 50
"""Files between two lines of progress."""

Say = Callable[[str], None]


def write_released(
    folder: Path,
    reduction: Reduction,
    n_layers: int,
    capping_config: bytes | None,
    say: Say,
) -> None:
    """Write the released files of a reduction.

    Args:
        folder: Existing folder to write to.
        reduction: The vectors; must have an axis, and every layer of the model.
        n_layers: Decoder layers of the model.
        capping_config: Content of ``capping_config.pt``; None for none.
        say: Called with a line of text now and then.

    Raises:
        InputError: A layer of the model was not captured, or a vector is undefined at one.
    """
    axis, default = reduction.axis, reduction.default_vector
    assert axis is not None
    assert default is not None
    _refuse_missing_layers(reduction, n_layers)
    files: list[tuple[str, npt.NDArray[np.float32]]] = [(AXIS_FILE, axis), (DEFAULT_FILE, default)]
    files += _named(ROLES_FOLDER, reduction.role_names, reduction.role_vectors)
    files += _named(TRAITS_FOLDER, reduction.trait_names, reduction.trait_vectors)
    for number, (name, values_LD) in enumerate(files):
        _refuse_undefined(name, values_LD, reduction)
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_tensor_bytes(values_LD))
        if number % _SAY_EVERY == _SAY_EVERY - 1:
            say(f"Wrote {number + 1} of {count_of(len(files), 'vector')}.")
    if capping_config is not None:
        (folder / CAPPING_CONFIG).write_bytes(capping_config)


def _named(
    folder: str, names: Sequence[str], vectors: npt.NDArray[np.float32] | None
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    if vectors is not None:
        yield from ((f"{folder}/{name}.pt", vectors[at]) for at, name in enumerate(names))


def _refuse_missing_layers(reduction: Reduction, n_layers: int) -> None:
    missing = sorted(set(range(n_layers)) - set(reduction.layers))
    if missing:
        shown = f"{', '.join(map(str, missing[:8]))}{' ...' if len(missing) > 8 else ''}"
        raise InputError(
            f"the released files have a row for each of the model's {count_of(n_layers, 'layer')}, and there are no "
            "vectors of "
            f"layer{'s' if len(missing) > 1 else ''} {shown}.",
            code="missing_layers",
            field="--format",
            hint="--format safetensors keeps the list of layers; or run with capture.layers=all.",
        )


def _refuse_undefined(name: str, values_LD: npt.NDArray[np.float32], reduction: Reduction) -> None:
    undefined = [
        layer for layer, row_D in zip(reduction.layers, values_LD, strict=True) if not np.isfinite(row_D).all()
    ]
    if undefined:
        raise InputError(
            f"{name} would have no vector at layer{'s' if len(undefined) > 1 else ''} "
            f"{', '.join(map(str, undefined))}, and the released files have no way to say so.",
            code="undefined_vector",
            field="--format",
            hint="--format safetensors keeps undefined layers as NaN.",
        )


def _tensor_bytes(values_LD: npt.NDArray[np.float32]) -> bytes:
    import torch

    return saved_bytes(torch.from_numpy(np.array(values_LD, dtype=np.float32)).to(torch.bfloat16))


def saved_bytes(content: Any) -> bytes:
    """Encode tensors, numbers, texts and containers of them as ``torch.save`` does; same content, same bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def capping_bytes(reduction: Reduction, n_layers: int) -> tuple[bytes, str] | None:
    """Make the content of ``capping_config.pt``: every percentile, for windows of layers of several widths.

    Args:
        reduction: The axis and its thresholds.
        n_layers: Decoder layers of the model.

    Returns:
        The bytes, and a sentence that says which setting is recommended, empty if none is; None if there are no
        thresholds, or no window of layers has them all.
    """
    settings = released_settings(reduction, n_layers)
    if not settings:
        return None
    best = next((setting for setting in settings if setting.is_recommended), None)
    return (
        settings_bytes(reduction, settings),
        f"Of the capping settings, {best.name} is the one to try first. {best.basis}" if best is not None else "",
    )


def released_settings(
    reduction: Reduction, n_layers: int, windows: Sequence[range] | None = None
) -> list[CappingSetting]:
    """Make the capping settings of a reduction: windows of layers with every percentile.

    Args:
        reduction: The axis and its thresholds.
        n_layers: Decoder layers of the model.
        windows: The windows; None: the recommended one and those of the usual widths.

    Returns:
        The settings whose caps are all known; empty without thresholds.
    """
    axis, caps, floors = reduction.axis, reduction.cap_on_minus_axis, reduction.floor_on_axis
    if axis is None or caps is None or floors is None or not reduction.threshold_labels:
        return []
    found = Thresholds(reduction.threshold_labels, caps.astype(np.float64), floors.astype(np.float64))
    settings = capping_settings(axis, reduction.layers, found, n_layers, windows_asked=windows)
    return [setting for setting in settings if np.isfinite(setting.caps_L).all()]


def settings_bytes(reduction: Reduction, settings: Sequence[CappingSetting]) -> bytes:
    """Encode capping settings as the released file.

    Args:
        reduction: The axis, by whose kind the vectors are named.
        settings: At least one of its settings.
    """
    import torch

    vectors = {
        _vector_name(reduction, layer): {"vector": torch.from_numpy(vector_D.astype(np.float32)), "layer": layer}
        for setting in settings
        for layer, vector_D in zip(setting.layers, setting.vectors_LD, strict=True)
    }
    experiments = [
        {
            "id": setting.name,
            "interventions": [
                {"vector": _vector_name(reduction, layer), "cap": float(cap)}
                for layer, cap in zip(setting.layers, setting.caps_L, strict=True)
            ],
        }
        for setting in settings
    ]
    # In the order of layers, whichever window came first.
    vectors = dict(sorted(vectors.items(), key=lambda entry: entry[1]["layer"]))
    return saved_bytes({"vectors": vectors, "experiments": experiments})


def _vector_name(reduction: Reduction, layer: int) -> str:
    """Name a vector as the released file does, if it is the released contrast: roles scored 3 against the default."""
    is_scored = "3" in str(reduction.facts.get("role_filter", "all"))
    return f"layer_{layer}/contrast_role_{'pos3' if is_scored else 'all'}_default1"
