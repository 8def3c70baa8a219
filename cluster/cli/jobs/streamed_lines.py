"""What ``plan`` says of weights that are loaded layer by layer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ....jobs.plan import Plan
from ....jobs.sizing.devices import DeviceTable
from ....jobs.sizing.estimate import Estimate, parameter_bytes
from ....jobs.sizing.fit import fits
from ....jobs.sizing.streaming import HOST_GB_S, streamed_walk
from .. import output


def streamed_lines(planned: Plan, figures: Estimate, table: DeviceTable) -> list[list[str]]:
    """Explain why weights are loaded layer by layer, and how many tokens are then read at a time on each device.

    Args:
        planned: The plan.
        figures: Its estimate.
        table: The devices.

    Returns:
        Lines of (label, figure); none where weights are held.
    """
    if figures.weights == "resident":
        return []
    whole = output.size(planned.facts.num_parameters * parameter_bytes(planned))
    why = (
        "placement.weights is streamed"
        if planned.spec.placement.weights == "streamed"
        else (
            f"all of them ({whole}) fit no device with what a replica needs besides; where vLLM is installed, it runs "
            "the job all the same unless placement.engine is builtin"
        )
    )
    found = [["weights", f"loaded layer by layer, the next while one is computed: {why}"]]
    for name, device in table.devices.items():
        if not fits(figures, device, 1):
            continue
        walk = streamed_walk(planned, device)
        tokens = f"{walk.tokens:,} tokens at a time" + (" (placement.batch_tokens)" if walk.is_asked else "")
        found.append(
            [
                f"  on {name}",
                f"{tokens}: a layer of {output.size(walk.layer_bytes)} loads in {walk.load_s * 1e3:.0f} ms at "
                f"{HOST_GB_S:g} GB/s and computes in {walk.token_s * 1e6:.2g} us a token, about "
                f"{walk.share_of_resident:.0%} of the speed of weights that are held",
            ]
        )
    assumed = "the bandwidth is assumed, the arithmetic is the device table's; a worker measures both when it starts"
    return [*found, ["", assumed]]


def streamed_walks(planned: Plan, figures: Estimate, table: DeviceTable) -> dict[str, Any]:
    """Describe by device, as plain JSON values, what ``streamed_lines`` explains.

    Args:
        planned: The plan.
        figures: Its estimate.
        table: The devices.

    Returns:
        The figures of each device that a replica fits; empty where weights are held.
    """
    if figures.weights == "resident":
        return {}
    return {
        name: asdict(streamed_walk(planned, device))
        for name, device in table.devices.items()
        if fits(figures, device, 1)
    }
