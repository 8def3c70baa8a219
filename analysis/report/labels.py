"""Choose which points of a printed map are named, and on which side of the point the name stands. Pure.

A name stands where it covers neither a point nor another name; points without such a place stay without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

SIDES = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "above": (0.0, 1.0), "below": (0.0, -1.0)}
"""Direction from a point to its name, in the order in which they are tried."""

_LETTER, _BOLD, _LINE = 0.62, 0.72, 1.25
"""Width of a letter and of a bold one, and height of a line, as shares of the font's size."""


def place_labels(
    x: Float64, y: Float64, names: Sequence[str], size: float, room: tuple[float, float], first: Sequence[int] = ()
) -> dict[int, str]:
    """Place names from the outside of the map to its middle, so that none covers anything.

    Args:
        x: Coordinate of each point from the left, in the unit of ``size``.
        y: From below.
        names: Name of each point.
        size: Size of the font.
        room: Width and height of the map.
        first: Points that are named before all others, in bold, and in any case, where they cover least.

    Returns:
        A key of ``SIDES`` for every point that is named.

    Example:
        >>> place_labels(np.array([20.0, 30.0]), np.array([50.0, 50.0]), ["left", "right"], 8, (100, 100))
        {0: 'above', 1: 'right'}
    """
    distance = np.hypot(x - room[0] / 2, y - room[1] / 2)
    order = [*first, *(i for i in np.argsort(-distance, kind="stable").tolist() if i not in set(first))]
    points_N4 = np.stack([x - 3, y - 3, x + 3, y + 3], axis=1)
    placed: dict[int, str] = {}
    boxes: list[Float64] = []
    for i in order:
        others = np.concatenate([np.delete(points_N4, i, axis=0), *(box[None] for box in boxes)])
        width, height = len(names[i]) * (_BOLD if i in first else _LETTER) * size, _LINE * size
        covered: dict[str, int] = {}
        for side, (dx, dy) in SIDES.items():
            box = _box(float(x[i]), float(y[i]), dx, dy, width, height)
            if box[0] >= 0 and box[1] >= 0 and box[2] <= room[0] and box[3] <= room[1]:
                covered[side] = _num_covered(box, others)
        if covered and (i in first or not min(covered.values())):
            placed[i] = min(covered, key=lambda side: covered[side])
            boxes.append(_box(float(x[i]), float(y[i]), *SIDES[placed[i]], width, height))
    return placed


def _box(x: float, y: float, dx: float, dy: float, width: float, height: float) -> Float64:
    """Return left, bottom, right and top of a name beside a point."""
    reach = 6.0
    x, y = x + dx * (reach + width / 2), y + dy * (reach + height / 2)
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def _num_covered(box: Float64, others_N4: Float64) -> int:
    left, bottom, right, top = others_N4.T
    return int(((left <= box[2]) & (right >= box[0]) & (bottom <= box[3]) & (top >= box[1])).sum())
