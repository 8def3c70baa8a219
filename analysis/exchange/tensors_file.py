"""One safetensors file with all vectors of a reduction, and what they are.

The file's metadata holds ``format``, ``model``, ``model_family``, ``n_layers``, ``d_model``, ``reduction_id``,
``signs`` (a sentence) and, as JSON, ``layers``, ``role_names``, ``trait_names``, ``personas``, ``threshold_labels`` and
``facts``. Undefined values are NaN. Projections of single rollouts stay in the store: they belong to its rows.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError
from ...storage.derived.reductions import Reduction
from .imported import Files, Imported, require_finite, require_vector_name

FILE_NAME = "vectors.safetensors"

_FORMAT = "persona-atlas vectors 1"

_SIGNS = (
    "axis points toward the Assistant and is not normalised; projections are dot products with the unit axis, not "
    "centred; cap_on_minus_axis bounds the projection on minus the axis from above, floor_on_axis that on the axis "
    "from below, and is its negative; a label is a percentile of the projection on minus the axis"
)

_TEXTS = ("layers", "role_names", "trait_names", "personas", "threshold_labels", "facts")

_DTYPES = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}

SHAPES = {
    "mean": "GLD",
    "variance": "GLD",
    "count": "G",
    "mean_fully": "GLD",
    "count_fully": "G",
    "mean_somewhat": "GLD",
    "count_somewhat": "G",
    "role_vectors": "PLD",
    "role_counts": "P",
    "default_vector": "LD",
    "trait_vectors": "TLD",
    "trait_counts": "T",
    "trait_vectors_pos_neg": "ALD",
    "trait_vectors_pos_neg_50": "ALD",
    "trait_vectors_pos_default": "ALD",
    "trait_vectors_pos_70": "ALD",
    "trait_counts_pos_neg": "A",
    "trait_counts_pos_neg_50": "A",
    "trait_counts_pos_default": "A",
    "trait_counts_pos_70": "A",
    "axis": "LD",
    "axis_split_half": "L",
    "axis_interval": "2L",
    "role_projection": "PL",
    "role_projection_interval": "2PL",
    "default_projection": "L",
    "default_projection_interval": "2L",
    "role_axis_cosine": "PL",
    "trait_axis_cosine": "TL",
    "pca_mean": "LD",
    "pca_components": "LKD",
    "pca_variance_ratio": "LM",
    "pca_default_distance": "LK",
    "pca_rollout_variance": "LK",
    "pc1_axis_cosine": "L",
    "pc1_axis_cosine_interval": "2L",
    "pca_z_scale": "LD",
    "pca_z_components": "LKD",
    "pca_z_variance_ratio": "LM",
    "pc1_z_axis_cosine": "L",
    "trait_pca_mean": "LD",
    "trait_pca_components": "LJD",
    "trait_pca_variance_ratio": "LN",
    "trait_pc1_axis_cosine": "L",
    "trait_pca_z_scale": "LD",
    "trait_pca_z_components": "LJD",
    "trait_pca_z_variance_ratio": "LN",
    "trait_pc1_z_axis_cosine": "L",
    "category_pca_mean": "LD",
    "category_pca_components": "LRD",
    "category_pca_variance_ratio": "LO",
    "category_pc1_axis_cosine": "L",
    "category_pca_z_scale": "LD",
    "category_pca_z_components": "LRD",
    "category_pca_z_variance_ratio": "LO",
    "category_pc1_z_axis_cosine": "L",
    "cap_on_minus_axis": "QL",
    "floor_on_axis": "QL",
}
"""Axes of the arrays, a letter each: an axis has one length in all arrays of a file. 2: the ends of an interval."""


def write_tensors(
    folder: Path,
    reduction: Reduction,
    *,
    model: str,
    family: str,
    n_layers: int,
    d_model: int,
    say: Callable[[str], None],
) -> None:
    """Write a reduction as ``vectors.safetensors``, one array at a time.

    Args:
        folder: Existing folder to write to.
        reduction: The reduction.
        model: Source of the model.
        family: ``model_type`` of its configuration; empty if it is not known.
        n_layers: Decoder layers of the model.
        d_model: Width of the residual stream.
        say: Called with a line of text for every array.
    """
    header: dict[str, Any] = {
        "__metadata__": {
            "format": _FORMAT,
            "model": model,
            "model_family": family,
            "n_layers": str(n_layers),
            "d_model": str(d_model),
            "reduction_id": reduction.reduction_id,
            "signs": _SIGNS,
            **{name: json.dumps(text, sort_keys=True) for name, text in _texts_of(reduction).items()},
        }
    }
    start = 0
    for name in SHAPES:
        values: npt.NDArray[Any] | None = getattr(reduction, name)
        if values is None:
            continue
        dtype = "I64" if values.dtype.kind == "i" else "F32"
        end = start + values.size * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Written by hand: the safetensors library needs all arrays in memory at once.
    with (folder / FILE_NAME).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in [name for name in SHAPES if name in header]:
            say(f"Writing {name}.")
            file.write(np.ascontiguousarray(getattr(reduction, name), _DTYPES[header[name]["dtype"]]).tobytes())


def _texts_of(reduction: Reduction) -> dict[str, Any]:
    texts = {name: getattr(reduction, name) for name in _TEXTS}
    # An imported reduction keeps the family among its facts; here it has a key of its own.
    return texts | {"facts": {name: fact for name, fact in reduction.facts.items() if name != "model_family"}}


def read_tensors(path: Path) -> Imported:
    """Read a file that ``write_tensors`` wrote.

    Args:
        path: The file.

    Raises:
        InputError: It is no such file, an array has another shape or type than it must, or a number is not finite.
    """
    from safetensors import SafetensorError, safe_open

    files = Files(path.parent)
    files.add(path.name)
    try:
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys() if name in SHAPES}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"cannot be read as a safetensors file: {' '.join(str(error).split())}.",
            code="unreadable_file",
            file=str(path),
            hint="Fetch it again.",
        ) from error
    if metadata.get("format") != _FORMAT:
        raise InputError(
            "is not an export of vectors: its metadata has no such format.",
            code="unknown_format",
            file=str(path),
            hint="persona-atlas export --format safetensors writes one.",
        )
    try:
        texts = {name: json.loads(metadata[name]) for name in _TEXTS}
        n_layers, d_model = int(metadata["n_layers"]), int(metadata["d_model"])
        model, family, reduction_id = (metadata[name] for name in ("model", "model_family", "reduction_id"))
        facts: dict[str, Any] = dict(texts.pop("facts"))
        personas = tuple(tuple(str(part) for part in persona) for persona in texts.pop("personas"))
        layers = tuple(int(layer) for layer in texts.pop("layers"))
        texts = {name: tuple(str(text) for text in value) for name, value in texts.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"has metadata that cannot be read: {type(error).__name__} {error}.",
            code="bad_metadata",
            file=str(path),
            hint="Fetch it again.",
        ) from error
    # They become names of files when the vectors are exported again.
    for names in (texts["role_names"], texts["trait_names"]):
        _require_names(names, path)
    reduction = Reduction(
        reduction_id=reduction_id,
        layers=layers,
        personas=personas,  # pyright: ignore[reportArgumentType]
        facts=facts | ({"model_family": family} if family else {}),
        **texts,
        **arrays,
    )
    _require_shapes(reduction, arrays, d_model, path)
    return Imported(reduction, "safetensors", model, n_layers, d_model, tuple(files.read_so_far))


def _require_names(names: Sequence[str], path: Path) -> None:
    for name in names:
        require_vector_name(name, path)
    if len(set(names)) < len(names):
        raise InputError("lists a name twice.", code="bad_metadata", file=str(path), hint="Fetch it again.")


def _require_shapes(reduction: Reduction, arrays: dict[str, npt.NDArray[Any]], d_model: int, path: Path) -> None:
    lengths = {
        "L": len(reduction.layers),
        "D": d_model,
        "P": len(reduction.role_names),
        "T": len(reduction.trait_names),
        "Q": len(reduction.threshold_labels),
        "2": 2,
    }
    if reduction.personas:
        lengths["G"] = len(reduction.personas)
    for name, values in arrays.items():
        axes = SHAPES[name]
        expected = tuple(lengths.setdefault(axis, length) for axis, length in zip(axes, values.shape, strict=False))
        kind = "i" if "count" in name else "f"
        if values.shape != expected or len(axes) != values.ndim or values.dtype.kind != kind:
            raise InputError(
                f"{name} is {values.dtype} {values.shape}, and must be "
                f"{'int64' if kind == 'i' else 'float32'} {expected}.",
                code="other_shape",
                file=str(path),
                hint="All arrays of a file belong to one model.",
            )
    for name in ("role_vectors", "trait_vectors", "default_vector"):
        if name in arrays:
            require_finite(arrays[name], reduction.layers, path, name)
    if "axis" in arrays:
        is_defined = [layer not in reduction.undefined("axis") for layer in reduction.layers]
        kept = tuple(layer for layer, keep in zip(reduction.layers, is_defined, strict=True) if keep)
        require_finite(arrays["axis"][is_defined], kept, path, "axis")
