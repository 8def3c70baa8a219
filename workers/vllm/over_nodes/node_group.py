"""The nodes of a replica that is spread over several: how its processes find one another. Knows neither vLLM nor Ray.

The process on the first node *leads*: it holds the scheduler and sends every pass to all ranks. A process on each
further node *follows*: it starts the ranks of its stages, and ends with them.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass, field
from typing import Any

import psutil

_HOST_ADDRESS = "VLLM_HOST_IP"
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """What all processes of a replica must agree on.

    Attributes:
        num_nodes: Nodes of the replica.
        address: Address of the first node.
        port: Port there at which the ranks meet.
        lifeline_port: Port there of the leading process's lifeline.
        secret: What a process must say to be taken for one of the replica.
        seed: Seed of vLLM's random numbers where rollouts have none of their own; the same on all ranks.
    """

    num_nodes: int
    address: str
    port: int
    lifeline_port: int
    secret: bytes = field(repr=False)
    seed: int

    @classmethod
    def led_from(cls, address: str, num_nodes: int, lifeline_port: int, secret: bytes) -> NodeGroup:
        """Make the group that a process on this machine leads.

        Args:
            address: Address of this machine.
            num_nodes: Nodes of the replica.
            lifeline_port: Port of its lifeline.
            secret: As for the group.
        """
        return cls(num_nodes, address, _free_port(address), lifeline_port, secret, secrets.randbits(31))


@dataclass(frozen=True, slots=True)
class NodePlace:
    """The place of one process in its replica.

    Attributes:
        group: The replica's nodes.
        node_rank: Number of the process's node, 0 for the one that leads.
        address: Address of its own machine.
    """

    group: NodeGroup
    node_rank: int
    address: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of vLLM's engine that tell it."""
        return {
            "nnodes": self.group.num_nodes,
            "node_rank": self.node_rank,
            "master_addr": self.group.address,
            "master_port": self.group.port,
        }

    def set_environment(self) -> None:
        """Set the variables from which vLLM and its collectives take this machine's address."""
        os.environ[_HOST_ADDRESS] = self.address
        interface = _interface_of(self.address)
        if interface is not None:
            # Otherwise the one that the machine's name resolves to, which on many machines is only its own.
            os.environ.setdefault(_GLOO_INTERFACE, interface)


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        return free.getsockname()[1]


def _interface_of(address: str) -> str | None:
    """Return the name of the network interface with an address; None if this machine has none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None
