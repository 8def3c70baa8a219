"""The Ray actors of one replica: one that leads and, of a replica over several nodes, one on each further node.

The actors of such a replica are in a placement group of their own, a bundle on each node, so that Ray reserves all of
it or nothing. They live and die together: the driver kills all when one is gone, and their lifelines end them without
the driver.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import get_placement_group, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ...jobs.errors import AtlasError, InputError
from ...workers.vllm.over_nodes.lifeline import FollowerLifeline
from ...workers.vllm.over_nodes.node_group import NodeGroup, NodePlace
from ...workers.vllm.ranks import end_all_ranks, end_this_process, end_with_starter
from .assemble import engine_here
from .placement import Placement
from .ray_worker import not_loaded, on_own_node, require_current_directory
from .worker_settings import WorkerSettings

_CONCURRENT_CALLS = 6
"""Concurrent calls of one actor: ``wait_forever`` and ``next_report`` are always pending, and ``prepare`` or ``take``
may be as well; the rest is for calls that are about to return."""

_NODE_LABEL = "ray.io/node-id"


class FollowerActor:
    """A part of a replica over several nodes: the processes of its stages on one node. Knows neither units nor store.

    Args:
        settings: Settings of the worker.
        worker: Its name.
        node_rank: Number of this actor's node in the replica, from 1.
    """

    def __init__(self, settings: WorkerSettings, worker: str, node_rank: int) -> None:
        end_with_starter()
        self._settings = on_own_node(settings)
        self._worker = worker
        self._node_rank = node_rank

    def node_id(self) -> str:
        """Return the id of the node that this actor runs on."""
        return ray.get_runtime_context().get_node_id()

    def follow(self, group: NodeGroup) -> AtlasError | str:
        """Load this node's part of the model, and run it until a process of it ends.

        Args:
            group: How the processes of the replica find one another.

        Returns:
            Why it has ended: an error if the model could not be loaded. The error is returned and not raised, because
            Ray would wrap it.
        """
        address = ray.util.get_node_ip_address()
        try:
            require_current_directory()
            settings = engine_here(self._settings)
            lifeline = _lifeline_to(group, address)
            # Imported only where a model is loaded, as torch is.
            from ...workers.vllm.over_nodes.follower import follow

            follow(settings, NodePlace(group, self._node_rank, address), lifeline.loaded)
            # The process that leads ends at once, whether or not the driver is there to end it.
            lifeline.close()
        except AtlasError as error:
            return error
        except Exception as error:  # noqa: BLE001 - raised, it would look like a lost worker to the driver
            return not_loaded(error)
        return f"a process of {self._worker} on {address} has ended."

    def end(self) -> None:
        """End the ranks, at once; see :meth:`UnitActor.end`."""
        end_all_ranks()


def _lifeline_to(group: NodeGroup, address: str) -> FollowerLifeline:
    try:
        return FollowerLifeline(group.address, group.lifeline_port, group.secret, lambda _: end_this_process())
    except OSError as error:
        raise InputError(
            f"node {address} does not reach {group.address}, where the first stages of the replica are: {error}.",
            code="nodes_do_not_connect",
            field="placement.pipeline_parallel",
            hint="Let the nodes connect to one another on any port, or keep a replica on one node.",
        ) from error


def remove_groups_left_over(store_url: str) -> None:
    """Give back what an earlier driver of a run has reserved for its replicas.

    Ray removes a placement group when the actor that made it is dead for good, and not when it starts that actor again;
    the actors in the group are dead by then. A run has one driver at a time, so that the groups are no other's.

    Args:
        store_url: The run's store.
    """
    for entry in placement_group_table().values():
        if entry["name"].startswith(_name_of_groups(store_url)) and entry["state"] != "REMOVED":
            # It may be gone meanwhile.
            with suppress(ValueError):
                remove_placement_group(get_placement_group(entry["name"]))


def _name_of_groups(store_url: str) -> str:
    return f"persona-atlas/{hashlib.sha256(store_url.encode()).hexdigest()[:16]}/"


class Replica:
    """The driver's hold on the actors of one worker.

    Args:
        leader: The actor that is the worker.
        followers: Those of the further nodes.
        group: Their placement group; None on one node.

    Attributes:
        leader: The same.
        followers: The same.
        node_ids: Nodes of the followers, as far as they are known, by number from 1.
    """

    def __init__(self, leader: Any, followers: Sequence[Any] = (), group: Any = None) -> None:
        self.leader = leader
        self.followers = tuple(followers)
        self.node_ids: dict[int, str] = {}
        self._group = group

    @classmethod
    def launch(
        cls, actor_class: Any, settings: WorkerSettings, worker: str, placement: Placement, avoid: tuple[str, ...]
    ) -> Replica:
        """Launch the actors of a worker; they wait for free resources.

        Args:
            actor_class: Ray's class of the actor that leads.
            settings: Settings of the worker.
            worker: Its name.
            placement: Its resources.
            avoid: Ids of nodes on which no part of it must be placed.
        """
        options: dict[str, Any] = {
            "num_cpus": placement.threads,
            "num_gpus": placement.num_gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": _CONCURRENT_CALLS,
        }
        selector = {_NODE_LABEL: f"!in({','.join(avoid)})"} if avoid else {}
        if placement.num_nodes > 1:
            return cls._over_nodes(actor_class, settings, worker, placement, options, selector)
        if placement.one_per_node:
            # Where a node has room for several, Ray would rather fill it than use the next.
            options["scheduling_strategy"] = "SPREAD"
        if selector:
            options["label_selector"] = selector
        return cls(actor_class.options(**options).remote(settings, worker))

    @classmethod
    def _over_nodes(
        cls,
        actor_class: Any,
        settings: WorkerSettings,
        worker: str,
        placement: Placement,
        options: dict[str, Any],
        selector: dict[str, str],
    ) -> Replica:
        bundle = {"CPU": float(placement.threads), "GPU": float(placement.num_gpus)}
        bundles = [{name: amount for name, amount in bundle.items() if amount} for _ in range(placement.num_nodes)]
        # Ray takes None, though it does not say so, and no empty list.
        labels: Any = [selector] * len(bundles) if selector else None
        group = placement_group(
            bundles,
            strategy="STRICT_SPREAD",
            # Ray takes a name but once, and removes a group some time after it is told to.
            name=f"{_name_of_groups(settings.store_url)}{worker}/{secrets.token_hex(4)}",
            bundle_label_selector=labels,
        )
        strategies = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(placement.num_nodes)]
        in_bundle = [options | {"scheduling_strategy": strategy} for strategy in strategies]
        follower_class: Any = ray.remote(FollowerActor)
        leader = actor_class.options(**in_bundle[0]).remote(settings, worker)
        followers = [
            follower_class.options(**of_rank).remote(settings, worker, rank)
            for rank, of_rank in enumerate(in_bundle)
            if rank
        ]
        return cls(leader, followers, group)

    @property
    def parts(self) -> tuple[Any, ...]:
        """All actors, the one that leads first."""
        return (self.leader, *self.followers)

    def end(self) -> list[Any]:
        """End the ranks of all actors, which are about to be killed.

        Returns:
            The calls, which may be waited for.
        """
        return [actor.end.remote() for actor in self.parts]

    def kill(self) -> None:
        """Kill all actors, dead or alive, and give back what is reserved for them."""
        for actor in self.parts:
            ray.kill(actor, no_restart=True)
        if self._group is not None:
            remove_placement_group(self._group)
