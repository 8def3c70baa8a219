"""How many layers are handled at a time, and by how many threads, so that memory stays bounded for any run. Pure.

A reduction has 1 GB. Interpreter, libraries (Numba 0.12 of it) and the index of a large run take up to 0.4; the rest is
shared out here.
"""

from __future__ import annotations

ROW_PASS_BYTES = 512 * 2**20
"""Memory of all threads of a pass that reads rollouts."""

VECTOR_BYTES = 256 * 2**20
"""Memory of the vectors of one group of layers, and of what is computed from them."""

PROJECTION_BYTES = 128 * 2**20
"""Memory of the projections of one group of layers."""

SUMS_AHEAD = 8
"""Personas whose sums are read before they are used: each costs a round trip to the store."""

_THREAD_BYTES = 96 * 2**20
_SUM_BYTES = 40
"""Bytes per value of a group of sums: the sums, the earlier ones that they are merged with, and an intermediate."""


def layers_per_read(num_layers: int, rows_per_block: int, d_model: int, num_groups: int) -> int:
    """Return how many layers of a unit one thread holds at a time.

    Args:
        num_layers: L.
        rows_per_block: Rows of a unit, at most.
        d_model: D.
        num_groups: Groups of sums of one persona; 0 for projections.

    Example:
        >>> layers_per_read(30, 48, 576, 2), layers_per_read(80, 48, 8192, 10)
        (30, 20)
    """
    per_layer = d_model * (4 * rows_per_block + _SUM_BYTES * num_groups)
    return max(1, min(num_layers, _THREAD_BYTES // per_layer))


def threads(
    num_layers: int, rows_per_block: int, d_model: int, num_groups: int, num_cores: int, *, waits: bool = False
) -> int:
    """Return how many threads read rollouts at a time, at most one per core, or two where they wait for data.

    More than that are slower: they take turns at Python's lock between steps of some ten microseconds.

    Args:
        num_layers: L.
        rows_per_block: Rows of a unit, at most.
        d_model: D.
        num_groups: Groups of sums of one persona; 0 for projections.
        num_cores: Cores that may be used.
        waits: Whether the store answers over a network: while one thread waits for data, another computes.

    Example:
        >>> threads(30, 48, 576, 2, num_cores=2), threads(30, 48, 576, 2, num_cores=2, waits=True)
        (2, 4)
        >>> threads(80, 48, 8192, 10, num_cores=16)
        2
    """
    step = layers_per_read(num_layers, rows_per_block, d_model, num_groups)
    # The encoded sums of all layers are held until the object is complete.
    per_thread = (
        step * d_model * (4 * rows_per_block + _SUM_BYTES * num_groups) + num_groups * num_layers * d_model * 16
    )
    return max(1, min((2 if waits else 1) * num_cores, ROW_PASS_BYTES // per_thread))


def layers_of_vectors(num_layers: int, d_model: int, num_roles: int, num_traits: int, num_groups: int) -> int:
    """Return for how many layers vectors are computed at a time: a power of two, or all.

    Args:
        num_layers: L.
        d_model: D.
        num_roles: Number of roles.
        num_traits: Number of traits.
        num_groups: Groups of sums of one persona.

    Example:
        >>> layers_of_vectors(30, 576, 3, 1, 2), layers_of_vectors(80, 8192, 275, 240, 10)
        (30, 1)
    """
    # Per role: mean, variance, fully and somewhat in float32, the last two once more for their PCA, and vector, both
    # halves and a centred copy in float64.
    # Per trait: mean and variance of both polarities, four kinds of vectors, and the one that PCA takes.
    vectors = num_roles * (4 * 4 + 4 * 8 + 2 * 4) + num_traits * (4 * 4 + 4 * 4 + 2 * 8) + 64
    # The sums of a few personas that are read ahead: mean and squares, in float64 and as they are encoded.
    read_ahead = SUMS_AHEAD * num_groups * 4 * 8
    per_layer = d_model * (vectors + read_ahead)
    # PCA takes one layer at a time: of fully and of somewhat played roles, the vectors and a centred copy in float64.
    return _power_of_two((VECTOR_BYTES - pca_bytes(num_roles, d_model)) // per_layer, num_layers)


def pca_bytes(num_roles: int, d_model: int) -> int:
    """Return the memory that the largest PCA of one layer takes.

    Args:
        num_roles: Number of roles.
        d_model: D.
    """
    return 2 * num_roles * d_model * 2 * 8


def layers_of_projections(num_layers: int, num_rollouts: int) -> int:
    """Return for how many layers projections are held at a time: a power of two, or all.

    Args:
        num_layers: L.
        num_rollouts: N.

    Example:
        >>> layers_of_projections(30, 36), layers_of_projections(80, 908_400)
        (30, 8)
    """
    # In float32, then in float64 while percentiles are taken.
    return _power_of_two(PROJECTION_BYTES // max(1, num_rollouts * 16), num_layers)


def _power_of_two(fitting: int, num_layers: int) -> int:
    """Return the largest power of two that fits, or all layers: groups of layers then divide into chunks of layers."""
    return num_layers if fitting >= num_layers else 2 ** (max(1, fitting).bit_length() - 1)
