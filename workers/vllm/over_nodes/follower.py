"""A further node of a replica that is spread over several: starts the ranks of its stages, and ends with them.

The scheduler is on the first node, and sends every pass to the ranks. vLLM's own executor makes the connections.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ...engine import EngineSettings
from ..arguments import VllmOptions, edit_plan, engine_arguments, worker_plan
from ..loading import engine_config, starting_ranks
from ..model import read_model
from ..ranks import Ranks
from .node_group import NodePlace


def follow(
    settings: EngineSettings,
    place: NodePlace,
    on_loaded: Callable[[], None],
    options: VllmOptions | None = None,
) -> None:
    """Run this node's ranks until one of them has died, when the others are killed.

    Args:
        settings: What to load and how to run it, the same as the process that leads has.
        place: The place of this process in the replica.
        on_loaded: Called once the model is loaded.
        options: What else may be set, the same as in the process that leads; None: nothing.

    Raises:
        InputError: vLLM is missing or of another version, cannot load the model or has no room for it.
    """
    options = options or VllmOptions()
    model = read_model(settings)
    plan, edits = worker_plan(settings, model, options), edit_plan(settings, model, options)
    with starting_ranks(settings, place) as before:
        config = engine_config(engine_arguments(settings, model, plan, edits, options, place))
        multiproc: Any = import_module("vllm.v1.executor.multiproc_executor")
        # It makes the queues that its ranks read, so it is kept for as long as they run.
        executor = multiproc.MultiprocExecutor(config, monitor_workers=False)
    ranks = Ranks.started_since(before)
    on_loaded()
    ranks.wait_for_a_death()
    ranks.kill()
    del executor
    ranks.unlink_shared_memory()
