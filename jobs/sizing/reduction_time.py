"""Estimate what the reduction of a run takes, from measured times per value. Knows nothing of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Plan
from ..work.unit_size import stored_bytes_per_value

_AVERAGING_NS, _PROJECTING_NS = 2.6, 2.4
"""Nanoseconds of one core per value, reading and decoding it included; by ``benchmarks/reduce.py`` on a processor of
2023, with values in the page cache."""

_LAYER_S, _LAYER_ROLE_S, _LAYER_VALUE_NS = 0.1, 0.85e-3, 340.0
"""What vectors, PCA and intervals of one layer take of one core: seconds of their own, seconds for each role, and
nanoseconds for each coordinate of each persona, whose sums are merged by score. Fitted to judged runs of 161 and 756
personas and polarities."""


@dataclass(frozen=True, slots=True)
class ReductionTime:
    """Estimated cost of reducing one array of a finished run for the first time.

    Attributes:
        core_hours: Hours of one core, or that many cores for one hour. A later reduction costs what is new.
        read_bytes: Bytes that are read from the store, all rollouts twice; a slow store takes longer than the cores.
    """

    core_hours: float
    read_bytes: int


def reduction_time(plan: Plan) -> ReductionTime | None:
    """Estimate the reduction of a plan; None if it has no roles and default to reduce, or pools nothing.

    Args:
        plan: The plan.

    Example:
        >>> from persona_atlas import plan
        >>> reduction_time(plan("job.yaml")).core_hours < 0.05
        True
    """
    if not plan.spec.capture.pooled or not {"role", "default"} <= plan.rollouts_by_kind().keys():
        return None
    values = plan.num_rollouts * len(plan.layers) * plan.facts.d_model
    addresses = {(unit.kind, unit.persona, unit.polarity) for unit in plan.units}
    num_roles = sum(kind == "role" for kind, *_ in addresses)
    per_layer = _LAYER_S + _LAYER_ROLE_S * num_roles + _LAYER_VALUE_NS * 1e-9 * len(addresses) * plan.facts.d_model
    seconds = values * (_AVERAGING_NS + _PROJECTING_NS) * 1e-9 + len(plan.layers) * per_layer
    return ReductionTime(seconds / 3600, int(2 * values * stored_bytes_per_value(plan.spec.store.mantissa_bits)))
