"""Which files are a checkpoint's weights, whether they are whole, and how many parameters they hold.

One rule, for directories and for the hub alike: the files that the safetensors index names, else ``model.safetensors``,
else the only other file of that form. Whatever lies beside them (``original/``, ``consolidated.safetensors``, ``.bin``,
other precisions, adapters, GGUF) is neither fetched, nor counted, nor part of the fingerprint, nor loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import Any

from ....jobs.machine_faults import refuse_machine_fault
from .listing import Listing, read_json
from .problems import Problem

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Floating-point types in which parameters are stored plainly, by their names in safetensors files."""

_SINGLES = re.compile(r"model(\.\w+)?\.safetensors")
_INDEXES = re.compile(r"model(\.\w+)?\.safetensors\.index(\.\w+)?\.json")
_PARTS = re.compile(r"model.*-\d+-of-\d+(\.\w+)?\.safetensors")
"""The second group of letters is a variant, such as fp16."""

_NUMBERED = re.compile(r"(.*?)\.(\d+)\.")
"""The beginning of a tensor's name up to the first number in it."""

_READERS = 8

_FETCH_AGAIN = "Fetch what is missing or damaged again (git lfs pull, or hf download)."
_SAVE_AS_SAFETENSORS = "Save the model with save_pretrained, which writes safetensors; pickled weights are not loaded."


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold a checkpoint's weights.

    Attributes:
        entry: The file from which to start: the index, or the only file of weights.
        names: Files with weights, ascending; they need not exist.
        total_bytes: Bytes of all tensors by the index; None without an index, or if it does not tell.
    """

    entry: str
    names: tuple[str, ...]
    total_bytes: int | None = None


def choose_weights(listing: Listing) -> WeightFiles:
    """Choose the files that hold a checkpoint's weights.

    Args:
        listing: The checkpoint.

    Raises:
        ValueError: There are none, it cannot be told which, or the index cannot be read; says which file.
    """
    indexes = sorted(name for name in listing.names if _INDEXES.fullmatch(name))
    singles = sorted(name for name in listing.names if _SINGLES.fullmatch(name))
    if INDEX in indexes or (len(indexes) == 1 and SINGLE not in singles):
        named = _named_by(listing, INDEX if INDEX in indexes else indexes[0])
        # Of a repository that has its weights twice, somebody may have fetched the single file only.
        has_single_only = SINGLE in singles and all(listing.size(name) is None for name in named.names)
        return WeightFiles(SINGLE, (SINGLE,)) if has_single_only else named
    if SINGLE in singles or len(singles) == 1:
        name = SINGLE if SINGLE in singles else singles[0]
        return WeightFiles(name, (name,))
    parts = sorted(name for name in listing.names if _PARTS.fullmatch(name))
    if parts or singles:
        raise ValueError(f"{INDEX}: missing, so it cannot be told which of {_some(parts or singles)} belong together")
    raise ValueError(_what_lies_there_instead(listing))


def read_tensors(listing: Listing, weights: WeightFiles) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Read the headers of a checkpoint's weights, and find what is missing or not whole.

    Args:
        listing: The checkpoint.
        weights: The files that hold its weights.

    Returns:
        The headers' entries by tensor, and the problems.
    """
    tensors: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []

    def read(name: str) -> dict[str, Any] | str:
        if listing.size(name) is None:
            return _missing(listing, name, weights)
        try:
            return listing.header(name)
        except (ValueError, OSError) as error:
            refuse_machine_fault(error)
            return f"{name}: {error}"

    # Each header of a checkpoint on the hub is a request.
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(read, weights.names):
            if isinstance(found, str):
                problems.append(Problem(found, _FETCH_AGAIN))
            else:
                tensors |= found
    return tensors, problems


def no_weights(error: ValueError) -> Problem:
    """Make the problem of a checkpoint whose weights cannot be chosen.

    Args:
        error: What ``choose_weights`` raised.
    """
    pickled = ".bin" in str(error) or ".pt" in str(error) or "no safetensors" in str(error)
    return Problem(str(error), _SAVE_AS_SAFETENSORS if pickled else _FETCH_AGAIN)


def count_parameters(tensors: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count the values of floating-point tensors, by their type as safetensors names it.

    Args:
        tensors: Entries of safetensors headers. Masks and position ids, which are integers, are no parameters.
    """
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor["dtype"] in DTYPES:
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + prod(tensor["shape"])
    return counts


def parameters_by_layer(tensors: Mapping[str, Mapping[str, Any]], num_layers: int) -> list[int]:
    """Count the parameters of each decoder layer, by the numbers in the tensors' names.

    Args:
        tensors: Entries of safetensors headers by tensor.
        num_layers: Number of decoder layers.

    Returns:
        The parameters of each layer; empty where no list of modules has as many. Of several, the largest counts: a
        model that takes images may have as many layers that look at them.

    Example:
        >>> entry = {"dtype": "F32", "shape": [2, 3]}
        >>> parameters_by_layer({"model.layers.0.w": entry, "model.layers.1.w": entry, "lm_head.w": entry}, 2)
        [6, 6]
    """
    lists: dict[str, dict[int, int]] = {}
    for name, tensor in tensors.items():
        found = _NUMBERED.match(name)
        if found is not None and tensor["dtype"] in DTYPES:
            layers = lists.setdefault(found[1], {})
            layers[int(found[2])] = layers.get(int(found[2]), 0) + prod(tensor["shape"])
    whole = [layers for layers in lists.values() if sorted(layers) == list(range(num_layers))]
    largest = max(whole, key=lambda layers: sum(layers.values()), default={})
    return [largest[layer] for layer in sorted(largest)]


def num_bytes(tensor: Mapping[str, Any]) -> int:
    """Return the bytes of a tensor.

    Args:
        tensor: Its entry in a safetensors header.

    Example:
        >>> num_bytes({"dtype": "I32", "shape": [4], "data_offsets": [64, 80]})
        16
    """
    first, stop = tensor["data_offsets"]
    return int(stop) - int(first)


def _named_by(listing: Listing, index: str) -> WeightFiles:
    try:
        content = read_json(listing, index)
        names = {str(name) for name in dict(content["weight_map"]).values()}
        total: Any = content.get("metadata", {}).get("total_size")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else "no index of safetensors files"
        raise ValueError(f"{index}: {reason}") from None
    strange = sorted(name for name in names if not _is_inside(name))
    if not names or strange:
        raise ValueError(f"{index}: names {_some(strange) if strange else 'no file'}")
    return WeightFiles(index, tuple(sorted(names)), int(total) if isinstance(total, int | float) else None)


def _is_inside(name: str) -> bool:
    """Whether a name in an index is that of a safetensors file of the same checkpoint."""
    path = PurePosixPath(name)
    return name.endswith(".safetensors") and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _missing(listing: Listing, name: str, weights: WeightFiles) -> str:
    started = sorted(other for other in listing.names if other.startswith(name) and other != name)
    rest = f"; {started[0]} is a download that did not end" if started else ""
    return f"{name}: missing, though {weights.entry} names it{rest}"


def _what_lies_there_instead(listing: Listing) -> str:
    """Say what a checkpoint without safetensors weights holds instead, beginning with a file's name if there is one."""
    kinds = {
        "is GGUF, which is read only from an installed package (package://module/file.gguf)": (".gguf",),
        "is pickled, and pickled weights are not loaded": (".bin", ".pt", ".pth", ".ckpt"),
        "is for another program than transformers": (".onnx", ".h5", ".msgpack", ".tflite"),
        "is a download that did not end": (".part", ".incomplete", ".download", ".crdownload"),
        "has names of tensors that transformers does not load": (".safetensors",),
    }
    for words, endings in kinds.items():
        found = sorted(name for name in listing.names if name.endswith(endings))
        if found:
            return f"there are no safetensors weights for transformers: {_some(found)} {words}"
    return "there are no safetensors weights"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
