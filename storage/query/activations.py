"""The result of a query: activations and the rollouts they belong to, indexed along rollouts by numpy's rules. Pure.

Axes: N rows of ``values``, one per rollout or, for per-token activations, one per token; L layers, D d_model.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Float32 = npt.NDArray[np.float32]
Selection = slice | Sequence[int] | Sequence[bool] | npt.NDArray[np.integer | np.bool_]
"""Keys that select several rollouts; pyarrow columns, which have no type stubs, do too."""

_ADDRESS = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index", "turn_index")
_ADDRESSES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Completeness:
    """How many of a run's planned units are committed.

    Attributes:
        done: Committed units.
        planned: Planned units.
    """

    done: int
    planned: int

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.done >= self.planned

    def __str__(self) -> str:
        return f"{self.done} of {self.planned} units"


@dataclass(frozen=True, eq=False, kw_only=True)
class Activations:
    """Activations of selected rollouts, in address order.

    ``np.asarray(found)`` is ``found.values``, so any numpy function takes the object as it is. ``len``, indexing and
    iteration go along rollouts: an integer gives one rollout's array, as in numpy; a slice, a boolean mask or an array
    of integers gives ``Activations`` of those rollouts, with the matching lines of ``rollouts``. Other axes are indexed
    on ``values``.

    Attributes:
        values: float32 ``(N, D)`` when one layer was requested, else ``(N, L, D)``. For pooled activations N is the
            number of rollouts. For per-token activations (``offsets`` is not None) N is the number of tokens of all
            rollouts, concatenated.
        rollouts: One line per rollout, in the same order: address, row, token counts.
        layers: The layers of ``values``, 0-based.
        hook_point: Where in the model the values were captured.
        pooling: How each response's tokens were reduced to a row.
        completeness: Units committed and planned when the run was queried.
        offsets: For per-token activations int64 ``(rollouts + 1,)``: the tokens of rollout i are
            ``values[offsets[i]:offsets[i + 1]]``. None for pooled ones.
        note: A warning for people, such as that nothing matches or a persona does not exist; else empty.

    Example:
        >>> found = Activations(
        ...     values=np.arange(6, dtype=np.float32).reshape(3, 2),
        ...     rollouts=pa.table({"persona": ["pirate", "pirate", "poet"], "question_index": [0, 1, 0]}),
        ...     layers=(15,),
        ...     hook_point="resid_post",
        ...     pooling="response_mean",
        ...     completeness=Completeness(2, 2),
        ... )
        >>> found[-1].tolist()
        [4.0, 5.0]
        >>> found[[True, False, True]].rollouts["persona"].to_pylist()
        ['pirate', 'poet']
        >>> np.mean(found, axis=0).tolist()
        [2.0, 3.0]
        >>> found[1:]
        <Activations (2, 2) float32, resid_post/response_mean, layer 15, 2 rollouts>
          pirate/question1
          poet/question0
    """

    values: Float32
    rollouts: pa.Table
    layers: tuple[int, ...]
    hook_point: str
    pooling: str
    completeness: Completeness
    offsets: npt.NDArray[np.int64] | None = None
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``values``; for per-token activations the first entry counts tokens, and ``len`` rollouts."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Type of ``values``: float32."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Number of axes of ``values``: 2 when one layer was requested, else 3."""
        return self.values.ndim

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return self.rollouts.num_rows

    def __iter__(self) -> Iterator[Float32]:
        return iter(self.per_rollout())

    @overload
    def __getitem__(self, key: Selection) -> Activations: ...

    @overload
    def __getitem__(self, key: SupportsIndex) -> Float32: ...

    def __getitem__(self, key: Any) -> Float32 | Activations:
        """Select rollouts.

        Args:
            key: An integer for one rollout's array, which is a view of ``values``; or a slice, a boolean mask with an
                entry per rollout (a pyarrow column too), or a one-dimensional array of integers. Negative ones count
                from the end.

        Raises:
            IndexError: The key is out of bounds, a mask of another length, or none of these.
        """
        key = _checked_key(key)
        # numpy decides what is in bounds, and raises in its own words.
        chosen = np.arange(len(self))[key]
        if chosen.ndim == 0:
            if self.offsets is None:
                return self.values[chosen]
            return self.values[self.offsets[chosen] : self.offsets[chosen + 1]]
        rollouts = self.rollouts.take(pa.array(chosen, pa.int64()))
        if self.offsets is None:
            # By the key itself: a slice stays a view of the values, as it does in numpy.
            return replace(self, values=self.values[key], rollouts=rollouts)
        rows, offsets = _token_rows(chosen, self.offsets)
        return replace(self, values=self.values[rows], rollouts=rollouts, offsets=offsets)

    def __repr__(self) -> str:
        pooling = f"{self.hook_point}/{self.pooling}"
        rollouts = f"{len(self)} rollout{'' if len(self) == 1 else 's'}"
        head = f"<Activations {self.shape} {self.dtype}, {pooling}, {_layers_text(self.layers)}, {rollouts}>"
        columns = [name for name in _ADDRESS if name in self.rollouts.column_names]
        lines = [f"  {_address_text(line)}" for line in self.rollouts.select(columns)[:_ADDRESSES_SHOWN].to_pylist()]
        more = len(self) - len(lines)
        return "\n".join([head, *lines, *([f"  ... {more} more"] if more else [])])

    def per_rollout(self) -> list[Float32]:
        """Return each rollout's part of ``values``, in order.

        Returns:
            Views of shape ``values.shape[1:]``; for per-token activations ``(tokens, ...)``, first token first.
        """
        if self.offsets is None:
            return list(self.values)
        return np.split(self.values, self.offsets[1:-1])[: len(self)]


def _token_rows(
    chosen: npt.NDArray[np.intp], offsets: npt.NDArray[np.int64]
) -> tuple[slice | npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of ``values`` that hold the chosen rollouts' tokens, and the offsets of the result."""
    counts = np.diff(offsets)[chosen]
    new_offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    if len(chosen) and np.array_equal(chosen, np.arange(chosen[0], chosen[0] + len(chosen))):
        # The tokens of consecutive rollouts are adjacent, so a slice selects them without copying, even gigabytes.
        return slice(int(offsets[chosen[0]]), int(offsets[chosen[-1] + 1])), new_offsets
    # Token t of the result is token t - new_offsets[i] of its rollout i, which starts at offsets[chosen[i]].
    rows = np.arange(new_offsets[-1]) + np.repeat(offsets[:-1][chosen] - new_offsets[:-1], counts)
    return rows, new_offsets


def _checked_key(key: Any) -> Any:
    """Return an integer, a slice, or a one-dimensional array of integers or booleans.

    Raises:
        IndexError: It is none of these. Tuples, None and ``...`` index several axes in numpy; here the rollouts table
            could not follow them.
    """
    if isinstance(key, slice):
        return key
    if isinstance(key, tuple) or key is None or key is Ellipsis or isinstance(key, bool | np.bool_):
        raise IndexError("Activations are indexed along rollouts; index .values for layers and d_model")
    try:
        return operator.index(key)
    except TypeError:
        # Not a single integer: an array of them, or a mask.
        array = np.asarray(key)
    if array.size == 0 and array.dtype.kind == "f":
        # ``np.asarray([])`` is float; like numpy's own indexing, treat an empty list as integers.
        array = array.astype(np.intp)
    if array.ndim != 1 or array.dtype.kind not in "biu":
        raise IndexError("only integers, slices (`:`), and one-dimensional integer or boolean arrays are valid indices")
    return array


def _layers_text(layers: tuple[int, ...]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    is_range = layers == tuple(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if is_range else f"layers {', '.join(map(str, layers))}"


def _address_text(line: dict[str, Any]) -> str:
    """Write an address as ``RolloutAddress`` does: names as they are, indices with what they count."""
    parts = [
        f"{name.removesuffix('_index')}{value}" if name.endswith("_index") else str(value)
        for name, value in line.items()
        if value is not None
    ]
    return "/".join(parts)
