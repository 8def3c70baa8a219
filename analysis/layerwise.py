"""Read the arrays of a reduction a few layers at a time, so that the report of a large model needs little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..storage.derived.reductions import Reduction

_BYTES = 256 * 2**20
"""Memory for one group of layers of the largest array."""


def layer_groups(reduction: Reduction) -> Iterator[slice]:
    """Yield slices along the L axis, small enough that a group of layers of any array fits into memory.

    Args:
        reduction: A reduction; the number of personas and rollouts decides how many layers are in a group.
    """
    num_vectors = max(len(reduction.personas), len(reduction.role_names) + 2 * len(reduction.trait_names), 1)
    first = read_layers(reduction, "default_vector", slice(0, 1))
    width = 8192 if first is None else first.shape[-1]
    num_rollouts = 0 if reduction.projection_rows is None else len(reduction.projection_rows)
    # Read as float32 and used as float64.
    step = max(1, _BYTES // (12 * max(num_vectors * width, num_rollouts, 1)))
    for start in range(0, len(reduction.layers), step):
        yield slice(start, min(start + step, len(reduction.layers)))


def read_layers(reduction: Reduction, name: str, at: slice) -> npt.NDArray[np.float64] | None:
    """Read some layers of an array, as float64.

    Args:
        reduction: The reduction.
        name: Name of an array with a layer axis.
        at: Range of positions along that axis.

    Returns:
        The layers, with the axes of the array; None where the reduction lacks it.
    """
    values = reduction.read(name, list(reduction.layers[at]))
    return None if values is None else np.asarray(values, dtype=np.float64)


def has_array(reduction: Reduction, name: str) -> bool:
    """Whether a reduction holds an array, without reading more of it than a layer."""
    return read_layers(reduction, name, slice(0, 1)) is not None
