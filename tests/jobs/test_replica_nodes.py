"""Over how many nodes a replica is spread, and how many there is room for, against all ways to place its parts."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from persona_atlas.jobs.vllm.replica_nodes import node_counts, nodes_of_replica, replicas_on, spread


def most_replicas(parts: tuple[int, ...], nodes: int) -> int:
    """Try every way to give each replica parts on nodes of their own."""
    best = 0
    for chosen in combinations(range(len(parts)), nodes):
        if all(parts[node] for node in chosen):
            left = tuple(room - (node in chosen) for node, room in enumerate(parts))
            best = max(best, 1 + most_replicas(left, nodes))
    return best


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_as_many_replicas_have_room_as_can_be_placed(nodes: int):
    for parts in product(range(3), repeat=4):
        assert replicas_on(parts, nodes) == most_replicas(parts, nodes), parts
    assert replicas_on((), nodes) == 0


@pytest.mark.parametrize(
    ("tensor", "stages", "per_node", "expected"),
    [
        (8, 1, 8, 1),
        (4, 2, 8, 1),
        (8, 2, 8, 2),
        (8, 4, 16, 2),
        (2, 5, 8, 5),
        (2, 6, 8, 2),
        (16, 2, 8, None),
        (1, 2, 0, None),
    ],
)
def test_stages_are_spread_over_as_few_nodes_as_hold_them_and_never_divided(
    tensor: int, stages: int, per_node: int, expected: int | None
):
    assert nodes_of_replica(tensor, stages, per_node) == expected
    assert all(stages % nodes == 0 for nodes in node_counts(stages))


@pytest.mark.parametrize(
    ("devices", "tensor", "stages", "replicas", "expected"),
    [
        ((8, 8), 4, 2, None, (1, 2)),
        # One node has room for one of two: both are spread.
        ((8, 4, 4), 4, 2, 2, (2, 2)),
        ((8, 4, 4), 4, 2, 1, (1, 1)),
        # Too many in any way: the way with the most.
        ((8, 4, 4), 4, 2, 3, (2, 2)),
        ((8, 4), 8, 2, None, (1, 0)),
        ((8, 8), 16, 1, None, (1, 0)),
    ],
)
def test_a_replica_is_spread_only_where_that_gives_room(
    devices: tuple[int, ...], tensor: int, stages: int, replicas: int | None, expected: tuple[int, int]
):
    found = spread(devices, tensor_parallel=tensor, pipeline_parallel=stages, replicas=replicas)
    assert found == expected
