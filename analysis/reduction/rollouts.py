"""Which rollouts each persona has, unit by unit, and in which group of sums each of them counts. Pure.

A group is a class (what the judge gave) and a half (even or odd questions). Axes: N rollouts of a unit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..classes import DEFAULT, HALVES, UNSCORED, score_classes

Group = tuple[str, str]
"""Class and half; the half is empty where rollouts have no question."""

_NO_OBJECT_NAME = re.compile(r"[^A-Za-z0-9_.-]")

KINDS = ("default", "role", "trait")
"""Kinds of personas; given conversations without a persona are projected, but there is no mean to take of them."""


_METHOD = 1
"""Part of the digest of every partial result; raised when the same rollouts would give other sums or projections, by
more than rounding."""


@dataclass(frozen=True, eq=False)
class UnitRows:
    """The rollouts of one persona in one unit.

    Attributes:
        unit_id: The unit.
        row_block: Row block of the attempt that was committed; no other attempt of the run has it.
        rows_N: Their rows in the row block, int64.
        places_N: Their positions among the lines of the persona, int64, ascending. Between them may be lines of other
            units: those of a question's later samples, in a run that grew.
        groups_N: Number of the group of each in ``Persona.groups``.
        rows_digest: Digest of which rows they are.
        digest: Digest of which rows they are and of their groups.
    """

    unit_id: str
    row_block: int
    rows_N: npt.NDArray[np.int64]
    places_N: npt.NDArray[np.int64]
    groups_N: npt.NDArray[np.int64]
    rows_digest: str
    digest: str


@dataclass(frozen=True, eq=False)
class Persona:
    """The rollouts of one persona and polarity that have a vector.

    Attributes:
        kind: ``default``, ``role`` or ``trait``; ``conversation`` for given conversations of no persona.
        name: Name; empty for conversations.
        polarity: ``pos`` or ``neg``.
        first: Position of its first rollout among all lines.
        groups: The groups it has rollouts in, sorted.
        counts: Number of rollouts in each.
        units: Its rollouts, unit by unit, in the order of the first line of each.
    """

    kind: str
    name: str
    polarity: str
    first: int
    groups: tuple[Group, ...]
    counts: tuple[int, ...]
    units: tuple[UnitRows, ...]

    @property
    def key(self) -> str:
        """Kind, name and polarity as part of an object's name; two personas may share it, as ``a b`` and ``a_b`` do.

        The name of a persona of given conversations is that of a file, which may be longer than an object's may be.
        """
        return f"{self.kind}-{_NO_OBJECT_NAME.sub('_', self.name)[:80]}-{self.polarity}"

    @property
    def address(self) -> tuple[str, str, str]:
        """Kind, name and polarity."""
        return self.kind, self.name, self.polarity

    @property
    def count(self) -> int:
        """Number of rollouts."""
        return sum(self.counts)

    @cached_property
    def digest(self) -> str:
        """Digest of which rollouts they are and of their groups."""
        return _sha(f"{unit.unit_id} {unit.row_block} {unit.digest}" for unit in self.units)

    @cached_property
    def rows_digest(self) -> str:
        """Digest of which rollouts they are."""
        return _sha(f"{unit.unit_id} {unit.row_block} {unit.rows_digest}" for unit in self.units)

    def count_in(self, classes: Collection[str], half: str | None = None) -> int:
        """Count the rollouts of some classes.

        Args:
            classes: The classes that count.
            half: ``even`` or ``odd``; None: both.
        """
        pairs = zip(self.groups, self.counts, strict=True)
        return sum(count for (name, of_half), count in pairs if name in classes and half in (None, of_half))

    @cached_property
    def places(self) -> npt.NDArray[np.int64]:
        """Positions among its lines of its rollouts, unit by unit."""
        return np.concatenate([unit.places_N for unit in self.units])

    def members(self, classes: Collection[str]) -> npt.NDArray[np.bool_]:
        """Which of its rollouts are in some classes, in the order of the lines."""
        counts = np.array([name in classes for name, _ in self.groups], dtype=bool)
        found_N = np.empty(self.count, dtype=bool)
        found_N[self.places] = counts[np.concatenate([unit.groups_N for unit in self.units])]
        return found_N

    def members_digest(self, classes: Collection[str]) -> str:
        """Digest of which rollouts are in some classes."""
        counts = np.array([name in classes for name, _ in self.groups], dtype=bool)
        return _sha(
            f"{unit.unit_id} {unit.row_block} {unit.rows_N[counts[unit.groups_N]].tolist()}" for unit in self.units
        )


def _sha(parts: Iterator[str]) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()


def has_halves(lines: pa.Table) -> bool:
    """Whether every rollout has a question, so that questions can be divided into halves."""
    return lines["question_index"].null_count == 0


def personas_of(lines: pa.Table, rows_per_block: int) -> tuple[Persona, ...]:
    """Divide rollouts by persona and polarity, unit and group.

    Args:
        lines: Lines of the index with a vector, in address order; with a column ``score`` where there is a judge.
        rows_per_block: Rows of a row block.

    Returns:
        The personas in address order.

    Raises:
        InputError: A score is out of range.
    """
    if not lines.num_rows:
        return ()
    table = {name: pc.fill_null(lines[name], "") for name in ("kind", "persona", "polarity", "unit_id")}
    codes = {
        name: column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        for name, column in table.items()
    }
    halves_N = lines["question_index"].to_numpy(zero_copy_only=False) % 2 if has_halves(lines) else None
    rows = lines["row"].to_numpy()
    found: list[Persona] = []
    for start, stop in _runs([codes["kind"], codes["persona"]]):
        # Both polarities of a trait at once, because its pairs are made of both.
        names, classes_N = _classes(lines.slice(start, stop - start))
        # Number of class and half together, so that those numbers are in the order of the groups.
        labels_N = classes_N if halves_N is None else classes_N * len(HALVES) + halves_N[start:stop]
        halves = HALVES if halves_N is not None else ("",)
        for first, last in _runs([codes["polarity"][start:stop]]):
            at = start + first
            kind, name, polarity = (str(table[column][at].as_py()) for column in ("kind", "persona", "polarity"))
            counts = np.bincount(labels_N[first:last])
            numbers = np.flatnonzero(counts).tolist()
            groups = tuple((names[number // len(halves)], halves[number % len(halves)]) for number in numbers)
            units = _units(
                table["unit_id"].slice(at, last - first),
                codes["unit_id"][at : start + last],
                rows[at : start + last],
                np.searchsorted(numbers, labels_N[first:last]),
                [f"{name}.{half}" for name, half in groups],
                rows_per_block,
            )
            found.append(Persona(kind, name, polarity, at, groups, tuple(counts[numbers].tolist()), units))
    return tuple(found)


def _classes(lines: pa.Table) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the classes that occur, sorted, and the number of each line's."""
    if "score" not in lines.column_names:
        return [DEFAULT if lines["kind"][0].as_py() == "default" else UNSCORED], np.zeros(lines.num_rows, np.int64)
    names, classes_N = np.unique(score_classes(lines), return_inverse=True)
    return names.tolist(), classes_N


def _units(
    unit_ids_N: pa.ChunkedArray,
    codes_N: npt.NDArray[np.integer],
    rows_N: npt.NDArray[np.int64],
    groups_N: npt.NDArray[np.int64],
    texts: Sequence[str],
    size: int,
) -> tuple[UnitRows, ...]:
    """Divide the rollouts of one persona and polarity by unit; ``texts`` are the names of its groups."""
    places = list(_places(codes_N))
    ids = unit_ids_N.take(pa.array([int(places_N[0]) for places_N in places])).to_pylist()
    # Most units have the same questions, and so the same groups.
    labels: dict[bytes, str] = {}
    found: list[UnitRows] = []
    for unit_id, places_N in zip(ids, places, strict=True):
        of_unit_N, groups_of_unit_N = rows_N[places_N], groups_N[places_N]
        key = groups_of_unit_N.tobytes()
        if key not in labels:
            numbers: list[int] = groups_of_unit_N.tolist()
            labels[key] = " ".join([texts[number] for number in numbers])
        found.append(_unit(unit_id, of_unit_N, places_N, groups_of_unit_N, labels[key], size))
    return tuple(found)


def _unit(
    unit_id: str,
    rows: npt.NDArray[np.int64],
    places_N: npt.NDArray[np.int64],
    groups_N: npt.NDArray[np.int64],
    labels: str,
    size: int,
) -> UnitRows:
    block, rows_N = int(rows[0] // size), rows % size
    of_rows = sha256(f"{_METHOD} {block} ".encode() + rows_N.tobytes()).hexdigest()[:16]
    digest = sha256(f"{of_rows} {labels}".encode()).hexdigest()[:16]
    return UnitRows(unit_id, block, rows_N, places_N, groups_N, of_rows, digest)


def _places(codes_N: npt.NDArray[np.integer]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the places of the lines of each unit, which need not be neighbours, by the first of them."""
    order_N = np.arange(len(codes_N))
    if (np.diff(codes_N) < 0).any():
        _, first_U, units_N = np.unique(codes_N, return_index=True, return_inverse=True)
        order_N = np.argsort(first_U[units_N], kind="stable")
    yield from np.split(order_N, np.flatnonzero(np.diff(codes_N[order_N])) + 1)


def _runs(columns: list[npt.NDArray[np.integer]]) -> Iterator[tuple[int, int]]:
    """Yield start and stop of each run of lines that are alike in all columns."""
    length = len(columns[0])
    changes = np.zeros(length, dtype=bool)
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    edges = [0, *np.flatnonzero(changes).tolist(), length]
    yield from pairwise(edges)
