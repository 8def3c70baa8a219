"""Whether the machines that would run replicas have a vLLM that the engine knows; asked before any is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...jobs.errors import InputError
from ...workers.vllm.versions import require_known_version
from .placement import Placement
from .session import cluster_nodes

_TIMEOUT_S = 60.0
"""Time for the nodes to answer. A node starts a process for it, which takes a few seconds."""


@dataclass(frozen=True, slots=True)
class VllmNodes:
    """What the machines that would run replicas answered.

    Attributes:
        problems: Why a machine cannot run vLLM's engine, or None if it can, by name of the machine.
        per_replica: Machines that one replica takes.
    """

    problems: Mapping[str, InputError | None]
    per_replica: int = 1

    @property
    def lacking(self) -> dict[str, InputError]:
        """The machines that cannot, with the reason."""
        return {name: problem for name, problem in self.problems.items() if problem is not None}

    @property
    def is_any_able(self) -> bool:
        """Whether enough machines for a replica can; also if none was asked, since others may join later."""
        # Where there are fewer than a replica takes in any case, more may join later.
        return not self.lacking or len(self.problems) - len(self.lacking) >= self.per_replica

    def require_any(self) -> None:
        """Do nothing if enough machines for a replica can run vLLM's engine.

        Raises:
            InputError: Too few can; names each that cannot with its reason.
        """
        if self.is_any_able:
            return
        first = next(iter(self.lacking.values()))
        said = "; ".join(f"{name}: {problem.message.rstrip('.')}" for name, problem in sorted(self.lacking.items()))
        which = "no node that has room for a replica can run it"
        if len(self.lacking) < len(self.problems):
            which = f"a replica takes {self.per_replica} nodes, and too few can run it"
        raise InputError(
            f"is vllm, and {which}: {said}.",
            code=first.code,
            field=first.field,
            hint=first.hint,
        )


def vllm_problem(device: str) -> InputError | None:
    """Return why this machine cannot run vLLM's engine; None if it can. Does not import vLLM.

    Args:
        device: Where its replicas would run: ``cpu`` or ``cuda``.
    """
    try:
        require_known_version(device)
    except InputError as error:
        return error
    return None


def vllm_here(placement: Placement) -> VllmNodes:
    """Ask this machine.

    Args:
        placement: Resources of one replica.
    """
    return VllmNodes({"this machine": vllm_problem(placement.device)})


def vllm_on_cluster(placement: Placement) -> VllmNodes:
    """Ask each node of the Ray cluster that has room for a replica; one that dies meanwhile is left out.

    Args:
        placement: Resources of one replica.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = {node["NodeID"]: f"node {node['NodeID'][:8]} ({node['NodeManagerHostname']})" for node in ray.nodes()}
    ask = ray.remote(num_cpus=0, max_retries=0)(vllm_problem)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            placement.device
        ): names[node]
        for node, places in cluster_nodes(placement).places.items()
        if places
    }
    returned, late = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT_S) if asked else ([], [])
    for reference in late:
        ray.cancel(reference, force=True)
    problems: dict[str, InputError | None] = {}
    for reference in returned:
        try:
            problems[asked[reference]] = ray.get(reference)
        except RayError:
            # The node is gone. A replica on a node that was not asked checks for itself before it loads the model.
            continue
    return VllmNodes(problems, placement.num_nodes)
