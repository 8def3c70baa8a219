"""Which engine runs the replicas of a job, once it is known where they run. Does not import Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...jobs.engines import Engine, choose_engine
from ...jobs.plan import Plan
from ...jobs.wording import count_of
from ..pool.placement import Placement
from ..pool.vllm_nodes import VllmNodes
from .progress import Progress

ENGINE_NAMES: Mapping[Engine, str] = {"builtin": "the built-in engine", "vllm": "vLLM"}
"""How people are told of an engine."""


def require_engine(plan: Plan) -> None:
    """Refuse a job that no engine can run, wherever its replicas run.

    Args:
        plan: The plan of the job.

    Raises:
        InputError: The engine that the spec asks for, or the only one that could take it, cannot run it.
    """
    _choose(plan, has_gpu=True, vllm_installed=True)


def engine_for(plan: Plan, placement: Placement, ask: Callable[[], VllmNodes], progress: Progress) -> Engine:
    """Choose the engine of a job's replicas; see ``choose_engine``.

    All replicas of a start have the same engine. ``auto`` is vLLM only if every machine that would run a replica has
    it; a job that asks for vLLM runs on those that have it.

    Args:
        plan: The plan of the job.
        placement: Resources of the replicas.
        ask: Asks the machines that would run replicas whether they have vLLM; called only if that decides.
        progress: Prints which machines lack it.

    Raises:
        InputError: No engine can run the job there.
    """
    asked = plan.spec.placement
    has_gpu = placement.device == "cuda"
    if _choose(plan, has_gpu=has_gpu, vllm_installed=True) == "builtin":
        return "builtin"
    nodes = ask()
    if asked.engine == "vllm":
        nodes.require_any()
    lacking = nodes.lacking
    needs_vllm = asked.engine == "vllm" or asked.gpus_per_replica > 1
    installed = nodes.is_any_able if needs_vllm else not lacking and bool(nodes.problems)
    chosen = _choose(plan, has_gpu=has_gpu, vllm_installed=installed)
    if lacking and len(lacking) < len(nodes.problems):
        name, problem = next(iter(sorted(lacking.items())))
        effect = "no replica runs there" if chosen == "vllm" else "so all replicas use the built-in engine"
        progress.say(
            f"{count_of(len(lacking), 'node')} of {len(nodes.problems)} cannot run vLLM, {effect}. {name}: "
            f"{problem.message} {problem.hint or ''}".rstrip()
        )
    if chosen == "vllm" and asked.engine == "auto" and asked.gpus_per_replica == 1:
        progress.say(
            "vLLM runs the replicas, since it is installed and they have GPUs; the built-in engine does with "
            "--set placement.engine=builtin."
        )
    return chosen


def _choose(plan: Plan, *, has_gpu: bool, vllm_installed: bool) -> Engine:
    return choose_engine(plan.spec, plan.facts, vllm_installed=vllm_installed, has_gpu=has_gpu)
