"""Read a released directory of the Assistant Axis: tensors only, so that no code of a pickle is run.

The format is described in ``released_files``. Axes: P roles, L layers, D d_model, Q labels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError
from ...jobs.wording import count_of
from ...storage.derived.reductions import Reduction
from ...storage.format.layout import CAPPING_CONFIG
from ..axis import cosine_or_nan, unit
from .derive import derived_arrays
from .imported import Files, Imported, facts_of_published, require_finite, require_vector_name
from .released_files import AXIS_FILE, DEFAULT_FILE, ROLES_FOLDER, TRAITS_FOLDER, Say
from .torch_file import CAPPING_SETTINGS, ONE_TENSOR, load_plain

Float32 = npt.NDArray[np.float32]

SAME_DIRECTION = 0.99
"""Least cosine of two vectors that are the same but for rounding to bfloat16 and a slightly different set of roles."""

_EXPERIMENT = re.compile(r"layers_(\d+):(\d+)-(p[0-9.]+)")


def read_released(root: Path, say: Say) -> Imported:
    """Read a released directory.

    Args:
        root: The directory.
        say: Called with a line of text for every kind of vector.

    Raises:
        InputError: A file is missing, cannot be read as tensors, or has another shape or type than the others; or a
            number is not finite.
    """
    files = Files(root)
    axis_LD = _read_vector(files, AXIS_FILE, None)
    _refuse_zero(axis_LD, root / AXIS_FILE)
    shape = axis_LD.shape
    default_LD = _read_vector(files, DEFAULT_FILE, shape)
    role_names, role_vectors = _read_folder(files, ROLES_FOLDER, shape, say)
    if role_vectors is None:
        raise InputError(
            f"there is no {ROLES_FOLDER}/ with a vector for each role.",
            code="missing_file",
            file=str(root / ROLES_FOLDER),
            hint="A released directory has assistant_axis.pt, default_vector.pt and role_vectors/.",
        )
    trait_names, trait_vectors = _read_folder(files, TRAITS_FOLDER, shape, say)
    notes = _axis_notes(axis_LD, default_LD, role_vectors)
    notes += [] if trait_names else [f"There is no {TRAITS_FOLDER}/."]
    capping, caps, more_notes = _read_capping(files, axis_LD)
    derived = derived_arrays(axis_LD, default_LD, role_vectors, trait_vectors)
    reduction = Reduction(
        reduction_id=files.digest,
        layers=tuple(range(shape[0])),
        role_names=role_names,
        trait_names=trait_names,
        facts=facts_of_published("assistant-axis") | _undefined(derived),
        axis=axis_LD,
        default_vector=default_LD,
        role_vectors=role_vectors,
        trait_vectors=trait_vectors,
        **caps,
        **derived,
    )
    return Imported(
        reduction=reduction,
        source="assistant-axis",
        model="",
        n_layers=shape[0],
        d_model=shape[1],
        files=tuple(files.read_so_far),
        notes=tuple(notes + more_notes),
        capping_config=capping,
    )


def _undefined(derived: dict[str, Any]) -> dict[str, Any]:
    """Name the layers without principal components, as a reduction does."""
    ratio = derived.get("pca_variance_ratio")
    missing = [] if ratio is None else np.flatnonzero(~np.isfinite(ratio).all(axis=1)).tolist()
    reasons = {str(layer): "the role vectors are all the same" for layer in missing}
    return {"undefined": {"pca": reasons}} if reasons else {}


def _refuse_zero(axis_LD: Float32, path: Path) -> None:
    zero = np.flatnonzero(~axis_LD.any(axis=1)).tolist()
    if zero:
        raise InputError(
            f"the axis has length zero at layer{'s' if len(zero) > 1 else ''} {', '.join(map(str, zero[:8]))}: that is "
            "no direction.",
            code="zero_axis",
            file=str(path),
            hint="Fetch the file again.",
        )


def _read_folder(files: Files, folder: str, shape: tuple[int, ...], say: Say) -> tuple[tuple[str, ...], Float32 | None]:
    paths = sorted((files.root / folder).glob("*.pt"))
    if not paths:
        return (), None
    say(f"Reading {count_of(len(paths), 'file')} of {folder}/.")
    names = tuple(require_vector_name(path.stem, path) for path in paths)
    return names, np.stack([_read_vector(files, f"{folder}/{path.name}", shape) for path in paths])


def _read_vector(files: Files, name: str, shape: tuple[int, ...] | None) -> Float32:
    import torch

    path = files.root / name
    content = load_plain(files.read(name), str(path), ONE_TENSOR)
    if isinstance(content, dict) and len(content.keys() & {"axis", "vector"}) == 1:
        # The released pipeline itself writes a tensor with its description.
        content = content.get("axis", content.get("vector"))
    if not isinstance(content, torch.Tensor) or not content.is_floating_point() or content.ndim != 2:
        found = (
            f"{content.dtype} {tuple(content.shape)}" if isinstance(content, torch.Tensor) else type(content).__name__
        )
        raise InputError(
            f"holds {found}, and a vector file holds {ONE_TENSOR}.",
            code="bad_tensor",
            file=str(path),
        )
    if shape is not None and tuple(content.shape) != shape:
        raise InputError(
            f"has {count_of(content.shape[0], 'layer')} x {content.shape[1]}, and {AXIS_FILE} has {shape[0]} x "
            f"{shape[1]}.",
            code="other_shape",
            file=str(path),
            hint="All files of a directory belong to one model.",
        )
    values_LD: Float32 = content.detach().to(torch.float32).numpy()
    require_finite(values_LD, tuple(range(len(values_LD))), path, "the vector")
    return values_LD


def _axis_notes(axis_LD: Float32, default_LD: Float32, role_vectors_PLD: Float32) -> list[str]:
    """Compare the axis with default minus roles.

    It is no error if they differ: an axis is made of fully role vectors only, and means may be far larger than it.
    """
    difference_LD = default_LD.astype(np.float64) - role_vectors_PLD.mean(axis=0, dtype=np.float64)
    cosine_L = cosine_or_nan(axis_LD, difference_LD)
    if (cosine_L < 0).all():
        return [
            f"{AXIS_FILE} points away from the Assistant: its cosine with default minus the mean of the roles is "
            f"negative at every layer."
        ]
    apart = [layer for layer, value in enumerate(cosine_L) if not value >= SAME_DIRECTION]
    if not apart:
        return []
    return [
        f"{AXIS_FILE} is not default minus the mean of the roles (cosine below {SAME_DIRECTION:g}) at "
        f"{len(apart)} of {len(axis_LD)} layers, the lowest {np.nanmin(cosine_L):.2f}: it was made of other roles, or "
        "bfloat16 rounds the means by more than their difference."
    ]


def _read_capping(files: Files, axis_LD: Float32) -> tuple[bytes | None, dict[str, Any], list[str]]:
    """Read the capping settings: the file as it is, thresholds by label and layer, and notes."""
    path = files.root / CAPPING_CONFIG
    if not path.exists():
        return None, {}, [f"There is no {CAPPING_CONFIG}, so there are no thresholds."]
    data = files.read(CAPPING_CONFIG)
    config = load_plain(data, str(path), CAPPING_SETTINGS)
    try:
        caps = _caps_by_label(config, axis_LD, path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"is not a capping configuration: {type(error).__name__} {error}.",
            code="bad_capping_config",
            file=str(path),
            hint='It is {"vectors": {name: {"vector", "layer"}}, "experiments": [{"id", "interventions"}]}.',
        ) from error
    if isinstance(caps, str):
        return data, {}, [caps]
    labels = sorted(caps, key=lambda label: float(label[1:]))
    cap_QL = np.full((len(labels), len(axis_LD)), np.nan, dtype=np.float32)
    for q, label in enumerate(labels):
        for layer, cap in caps[label].items():
            cap_QL[q, layer] = cap
    arrays = {"threshold_labels": tuple(labels), "cap_on_minus_axis": cap_QL, "floor_on_axis": -cap_QL}
    # The same bits for every NaN: a chunk of them reads back as the fill value.
    arrays["floor_on_axis"][np.isnan(cap_QL)] = np.nan
    return data, arrays if labels else {}, []


def _caps_by_label(config: Any, axis_LD: Float32, path: Path) -> dict[str, dict[int, float]] | str:
    """Collect the caps on minus the axis by label and layer; a sentence if they cap something else."""
    directions: dict[str, int] = {}
    for name, entry in config["vectors"].items():
        vector_D, layer = entry["vector"].detach().float().numpy(), int(entry["layer"])
        if vector_D.shape != axis_LD.shape[1:] or not 0 <= layer < len(axis_LD):
            raise InputError(
                f"the vector {name!r} of layer {layer} has shape {vector_D.shape}, and {AXIS_FILE} has "
                f"{count_of(len(axis_LD), 'layer')} x {axis_LD.shape[1]}.",
                code="other_shape",
                file=str(path),
            )
        require_finite(vector_D[None], (layer,), path, f"the vector {name!r}")
        # Only its direction counts: the released code scales it to length one.
        if float(unit(vector_D.astype(np.float64)) @ -unit(axis_LD[layer].astype(np.float64))) < SAME_DIRECTION:
            return (
                f"{CAPPING_CONFIG} caps along other directions than minus the axis, as {name!r}; it is kept and "
                "exported as it is, and is no threshold on the axis."
            )
        directions[name] = layer
    caps: dict[str, dict[int, float]] = {}
    for experiment in config["experiments"]:
        found = _EXPERIMENT.fullmatch(str(experiment["id"]))
        for intervention in experiment["interventions"]:
            if found is None or "cap" not in intervention:
                continue
            layer, cap = directions[intervention["vector"]], float(np.float32(intervention["cap"]))
            if not np.isfinite(cap):
                raise InputError(
                    f"the cap of {experiment['id']} at layer {layer} is not finite.", code="not_finite", file=str(path)
                )
            if caps.setdefault(found[3], {}).setdefault(layer, cap) != cap:
                return (
                    f"{CAPPING_CONFIG} has several caps of the label {found[3]} at layer {layer}; it is kept and "
                    "exported as it is, and has no single threshold."
                )
    return caps
