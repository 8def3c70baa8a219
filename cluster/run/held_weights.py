"""How the replicas of a job hold their weights, settled where it is known how many of them share a memory."""

from __future__ import annotations

from typing import Literal

from ...jobs.engines import Engine
from ...jobs.sizing.streaming import can_stream, least_estimate
from ...workers.models.memory import free_bytes, require_memory
from ..pool.placement import Placement
from .prepare import Job

HeldWeights = Literal["auto", "resident", "streamed"]


def weights_asked(job: Job, engine: Engine) -> HeldWeights:
    """Return how a job's replicas hold their weights as far as its spec says; ``auto`` leaves it to their machines.

    Args:
        job: The prepared job.
        engine: Engine of the replicas.
    """
    return job.plan.spec.placement.weights if engine == "builtin" and can_stream(job.plan) else "resident"


def weights_here(job: Job, engine: Engine, placement: Placement) -> HeldWeights:
    """Settle it for all replicas of this machine before one is loaded: each for itself would take the same free memory.

    Args:
        job: The prepared job.
        engine: Engine of the replicas.
        placement: The replicas. Those with GPUs share none, so each of them settles it for itself.

    Returns:
        ``resident`` if all replicas fit with all weights, ``streamed`` if they do not and the job can do without.

    Raises:
        InputError: The memory has no room for the replicas either way.
    """
    asked = weights_asked(job, engine)
    if placement.device != "cpu":
        return asked
    if asked == "auto" and placement.replicas * job.estimate.machine_bytes <= free_bytes("cpu"):
        return "resident"
    least = least_estimate(job.plan) if engine == "builtin" else job.estimate
    require_memory(least.machine_bytes, placement.replicas, "cpu")
    return "resident" if asked == "resident" else "streamed"


def described_weights(job: Job, weights: HeldWeights) -> str:
    """Tell people of weights that are not held; empty where they are.

    Args:
        job: The prepared job.
        weights: What was settled.
    """
    if weights == "resident":
        return ""
    if weights == "auto":
        return ", with weights that are loaded layer by layer where they do not fit the memory"
    why = "" if job.plan.spec.placement.weights == "streamed" else ", because they do not fit the memory"
    return f", with weights that are loaded layer by layer{why}"
