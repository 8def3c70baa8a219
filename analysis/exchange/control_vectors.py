"""GGUF control vectors, as llama.cpp and repeng read them: one direction by layer in a file.

A tensor ``direction.L`` is added to the output of decoder layer L, 0-based, after its MLP: the place of ``resid_post``.
Both programs number it so (llama.cpp in ``llama_adapter_cvec``, where layer 0 never has a direction and the loader
refuses ``direction.0``; repeng in ``ControlVector``), hence no number is shifted here, and layer 0 is left out. Tools
that write ``direction.L+1`` steer one layer too high.
Axes: L layers, D d_model.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError, closest
from ...jobs.wording import count_of
from ...storage.derived.reductions import Reduction
from ..left_out import why_left_out
from .imported import Files, Imported, facts_of_published, require_finite, require_vector_name

Float32 = npt.NDArray[np.float32]

_ARCHITECTURE = "controlvector"
_OURS = "persona_atlas"
_NEEDED = {
    "role": "One needs rollouts of the role with a response.",
    "trait": "One needs rollouts of the trait and of its opposite, each with a response.",
}
_DIRECTION = re.compile(r"direction\.(\d+)")


def direction_of(reduction: Reduction, wanted: str, store: str = "") -> Float32:
    """Return the direction, ``(L, D)``, that a control vector of some name adds to the residual stream.

    Args:
        reduction: The vectors.
        wanted: ``axis``: the axis, toward the Assistant. ``role:NAME``: the role vector less the default vector, from
            the Assistant toward the role. ``trait:NAME``: the trait vector, toward the trait. None is normalised: at
            strength 1 it is the whole difference of means.
        store: Directory or URL of the run that was reduced, for hints on how to reduce it otherwise; empty for none.

    Raises:
        InputError: There is no such vector.
    """
    kind, _, name = wanted.partition(":")
    if wanted == "axis":
        return _require(reduction.axis, "there is no axis: it needs rollouts of the default Assistant and of a role.")
    if kind == "role" and name:
        default = _require(reduction.default_vector, "there is no default vector, which a direction to a role needs.")
        return _named(reduction, reduction.role_names, reduction.role_vectors, name, "role", store) - default
    if kind == "trait" and name:
        return _named(reduction, reduction.trait_names, reduction.trait_vectors, name, "trait", store)
    is_mean = wanted == "default"
    raise InputError(
        "the default vector is a mean activation: added to a residual stream it is no direction."
        if is_mean
        else f"{wanted!r} names no vector.",
        code="unknown_vector",
        field="--vector",
        hint="axis is the direction from the roles to the default."
        if is_mean
        else "Give axis, role:NAME or trait:NAME.",
    )


def _require(values: Float32 | None, message: str) -> Float32:
    if values is None:
        raise InputError(message, code="not_computed", field="--vector")
    return values


def _named(
    reduction: Reduction,
    names: Sequence[str],
    vectors: Float32 | None,
    name: str,
    kind: Literal["role", "trait"],
    store: str,
) -> Float32:
    if name not in names or vectors is None:
        reason, cure = why_left_out(reduction, kind, name, store) or ("", "")
        raise InputError(
            f"there is no vector of the {kind} {name!r}{f', because {reason}' if reason else ''}.",
            code="not_computed",
            field="--vector",
            hint=cure or ("" if reason else closest(name, names)) or _what_there_is(names, kind, store),
        )
    return vectors[list(names).index(name)]


def _what_there_is(names: Sequence[str], kind: Literal["role", "trait"], store: str) -> str:
    """Say how many personas of a kind have a vector, and where none has, what gives one in a run."""
    if names:
        return f"{count_of(len(names), kind)} {'has' if len(names) == 1 else 'have'} a vector."
    none = f"No {kind} has a vector{'.' if store else ' in these files.'}"
    return f"{none} {_NEEDED[kind]} Then persona-atlas reduce {shlex.quote(store)} makes it." if store else none


def file_name(wanted: str) -> str:
    """Name the file of a control vector.

    Example:
        >>> file_name("role:pirate")
        'role-pirate.gguf'
    """
    return f"{wanted.replace(':', '-', 1)}.gguf"


def write_control_vector(
    path: Path, reduction: Reduction, wanted: str, *, model: str, family: str, n_layers: int
) -> list[str]:
    """Write one control vector.

    Args:
        path: File to write.
        reduction: The vectors.
        wanted: Which direction; see ``direction_of``.
        model: Source of the model.
        family: ``model_type`` of its configuration; empty if it is not known.
        n_layers: Decoder layers of the model.

    Returns:
        Sentences about layers that were left out.

    Raises:
        InputError: There is no such vector, or no layer is left.
    """
    import gguf

    values_LD = direction_of(reduction, wanted)
    is_defined_L = np.asarray(np.isfinite(values_LD).all(axis=1))
    held = [(layer, values_LD[at]) for at, layer in enumerate(reduction.layers) if layer > 0 and bool(is_defined_L[at])]
    if not held:
        raise InputError(
            f"{wanted} is defined at no layer that a control vector can hold: llama.cpp has none for layer 0.",
            code="no_layers",
            field="--format",
            hint="--format safetensors keeps layer 0.",
        )
    writer = gguf.GGUFWriter(path, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", family or model)
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(held))
    writer.add_string(f"{_OURS}.vector", wanted)
    writer.add_string(f"{_OURS}.model", model)
    writer.add_uint32(f"{_OURS}.n_layers", n_layers)
    writer.add_string(f"{_OURS}.reduction", reduction.reduction_id)
    for layer, values_D in held:
        writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(values_D, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    left_out = [str(layer) for layer in reduction.layers if layer not in {layer for layer, _ in held}]
    if not left_out:
        return []
    return [f"{path.name} leaves out layer{'s' if len(left_out) > 1 else ''} {', '.join(left_out)}."]


def read_control_vectors(paths: Sequence[Path]) -> Imported:
    """Read GGUF control vectors of one model.

    A file of ``export`` says which vector it is. The others become trait vectors, which are directions too, by the
    names of their files; and so does the direction to a role, as ``NAME_minus_default``.

    Args:
        paths: The files, of one directory.

    Raises:
        InputError: A file is no control vector, has other layers or another width than the first, or a number is not
            finite.
    """
    files = Files(paths[0].parent)
    axis: Float32 | None = None
    traits: dict[str, Float32] = {}
    layers: tuple[int, ...] = ()
    models: dict[str, str] = {}
    families: dict[str, str] = {}
    num_layers = 0
    for path in paths:
        files.add(path.name)
        texts, directions = _read(path)
        found = tuple(sorted(directions))
        values_LD = np.stack([directions[layer] for layer in found])
        layers = layers or found
        width = (axis if axis is not None else next(iter(traits.values()), values_LD)).shape[1]
        if found != layers or values_LD.shape[1] != width:
            raise InputError(
                f"has {count_of(len(found), 'layer')} ({found[0]} to {found[-1]}) x {values_LD.shape[1]}, and "
                f"{paths[0].name} has "
                f"{len(layers)} ({layers[0]} to {layers[-1]}) x {width}.",
                code="other_shape",
                file=str(path),
                hint="Import files of one model and the same layers into one store.",
            )
        require_finite(values_LD, layers, path, "the vector")
        kind, _, name = texts.get("vector", f"trait:{path.stem}").partition(":")
        if kind != "axis":
            name = require_vector_name(f"{name}_minus_default" if kind == "role" else name, path)
        if axis is not None if kind == "axis" else name in traits:
            raise InputError(
                f"holds {name or 'the axis'} once more.",
                code="same_vector",
                file=str(path),
                hint="Leave one of the files out.",
            )
        if kind == "axis":
            axis = values_LD
        else:
            traits[name] = values_LD
        models |= {texts["model"]: path.name} if texts.get("model") else {}
        families |= {texts["family"]: path.name} if texts.get("family") else {}
        num_layers = max(num_layers, _number(texts.get("n_layers", "0"), path), layers[-1] + 1)
    if len(models) > 1 or len(families) > 1:
        differing = models if len(models) > 1 else families
        raise InputError(
            f"the files belong to several models: {', '.join(sorted(differing))}.",
            code="other_model",
            file=str(paths[0].parent),
            hint="Import each into a store of its own.",
        )
    reduction = Reduction(
        reduction_id=files.digest,
        layers=layers,
        role_names=(),
        trait_names=tuple(traits),
        facts=facts_of_published("gguf") | ({"model_family": next(iter(families))} if families else {}),
        axis=axis,
        trait_vectors=np.stack(list(traits.values())) if traits else None,
    )
    width = (axis if axis is not None else next(iter(traits.values()))).shape[1]
    return Imported(
        reduction, "gguf", next(iter(models), ""), num_layers, width, tuple(files.read_so_far), notes=_notes(axis)
    )


def _notes(axis: Float32 | None) -> tuple[str, ...]:
    no_means = "Control vectors are directions: there are no role vectors, no default vector and no thresholds."
    return (no_means,) if axis is not None else (no_means, "There is no axis.")


def _read(path: Path) -> tuple[dict[str, str], dict[int, Float32]]:
    """Read the metadata and the directions by layer of one file."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        texts = {
            "architecture": _text(reader, "general.architecture"),
            "family": _text(reader, f"{_ARCHITECTURE}.model_hint"),
            **{name: _text(reader, f"{_OURS}.{name}") for name in ("vector", "model", "n_layers")},
        }
        tensors = [(tensor.name, np.array(tensor.data)) for tensor in reader.tensors]
    # A damaged file raises errors of many types.
    except Exception as error:
        raise InputError(
            f"cannot be read as GGUF: {' '.join(str(error).split())}.",
            code="unreadable_file",
            file=str(path),
            hint="Fetch it again.",
        ) from error
    if texts["architecture"] != _ARCHITECTURE or not tensors:
        raise InputError(
            f"is no control vector: its architecture is {texts['architecture']!r}.",
            code="unknown_format",
            file=str(path),
            hint="A control vector has the architecture 'controlvector' and tensors direction.1, direction.2 ...",
        )
    directions: dict[int, Float32] = {}
    for name, values_D in tensors:
        found = _DIRECTION.fullmatch(name)
        if found is None or found[1] == "0" or values_D.dtype != np.float32 or values_D.ndim != 1:
            raise InputError(
                f"has the tensor {name!r}, {values_D.dtype} {values_D.shape}; a control vector has direction.1, "
                "direction.2 ..., each one row of float32.",
                code="bad_tensor",
                file=str(path),
            )
        directions[int(found[1])] = values_D
    if len({values_D.shape for values_D in directions.values()}) > 1:
        raise InputError("has directions of several widths.", code="other_shape", file=str(path))
    return {name: text for name, text in texts.items() if text}, directions


def _number(text: str, path: Path) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InputError(
            f"has {_OURS}.n_layers {text[:40]!r}, which is no number of layers.", code="bad_metadata", file=str(path)
        )
    return int(text)


def _text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(field.contents())
