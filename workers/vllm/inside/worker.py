"""vLLM's worker with a capture: sums of activations per request, made on the rank that computes them.

vLLM imports a worker class by its name. The two classes here, ``CpuWorker`` and ``GpuWorker``, are made when they are
asked for, because their bases are vLLM's, and this module can be imported without vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from ..capture_plan import KEY, SlotSpans, WorkerPlan
from ..edits.plan import EDITS_KEY, EditPlan, EditUpload
from ..rank_failures import told
from ..ranks import end_with_parent
from .rank_edits import RankEdits
from .runners import ForwardPass, hand_out_layers, observe_passes, view_of
from .slot_table import SlotTable
from .token_store import TokenStore
from .tracking import Tracker

WORKER_CLASSES = {"cpu": f"{__name__}.CpuWorker", "cuda": f"{__name__}.GpuWorker"}
"""The worker class of each device, by the name that vLLM imports."""

_BASES = {"CpuWorker": ("vllm.v1.worker.cpu_worker", "CPUWorker"), "GpuWorker": ("vllm.v1.worker.gpu_worker", "Worker")}

_made: dict[str, type] = {}


def __getattr__(name: str) -> type:
    if name not in _BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _made:
        module, base = _BASES[name]
        bases = (CapturingWorker, getattr(import_module(module), base))
        _made[name] = type(name, bases, {"__module__": __name__, "__doc__": CapturingWorker.__doc__})
    return _made[name]


class CapturingWorker:
    """A worker of vLLM that keeps the sums of its share of the captured layers."""

    vllm_config: Any
    model_runner: Any
    device: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        end_with_parent()
        with told():
            super().__init__(*args, **kwargs)

    def init_device(self) -> None:
        """Prepare the device, and tell the parent if that fails."""
        with told():
            super().init_device()  # pyright: ignore[reportAttributeAccessIssue]

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model, and allocate the table of sums before vLLM measures how much memory is left."""
        with told():
            loaded = super().load_model(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
            plan = self.vllm_config.additional_config.get(KEY)
            # Without a plan, as for a benchmark, nothing is captured.
            if plan is not None:
                self._persona_atlas = RankCapture(self, WorkerPlan.from_json(plan))
            edits = self.vllm_config.additional_config.get(EDITS_KEY)
            # Without places nothing is edited, and the model runs as vLLM made it.
            if edits is not None:
                self._persona_atlas_edits = RankEdits(self, EditPlan.from_json(edits))
        return loaded

    def persona_atlas_write(self, upload: EditUpload) -> None:
        """Write rows of the tables of edits."""
        self._persona_atlas_edits.write(upload)

    def persona_atlas_take(self, slots: list[int]) -> dict[str, Any] | None:
        """Return what slots have, and free them; None from a rank without a share of the captured layers."""
        return self._persona_atlas.take(slots)

    def persona_atlas_drop(self, slots: list[int]) -> None:
        """Free slots."""
        self._persona_atlas.drop(slots)


class RankCapture:
    """The capture of one rank.

    The ranks of a tensor-parallel group all have the whole residual stream, so each keeps the sums of a part of the
    layers. The stages of a pipeline have different layers.

    Args:
        worker: The rank's worker, with its model loaded.
        plan: What is captured.

    Raises:
        InputError: vLLM has not what the capture relies on.
    """

    def __init__(self, worker: Any, plan: WorkerPlan) -> None:
        distributed: Any = import_module("vllm.distributed")
        num_ranks, rank = (
            distributed.get_tensor_model_parallel_world_size(),
            distributed.get_tensor_model_parallel_rank(),
        )
        self._plan = plan
        view = view_of(worker)
        config = worker.vllm_config.model_config
        first, stop = config.get_layers_start_end_indices(worker.vllm_config.parallel_config)
        of_stage = [layer for layer in plan.layers if first <= layer < stop]
        hand_out_layers(worker, of_stage, is_last_stage=distributed.get_pp_group().is_last_rank)
        self._own = _Share(
            [(place, layer) for place, layer in enumerate(of_stage) if place % num_ranks == rank],
            plan,
        )
        self._num_handed_out = len(of_stage)
        d_model = config.get_hidden_size()
        device = worker.device
        self._table = SlotTable(
            plan.sums,
            num_layers=len(self._own.places),
            slots=plan.slots,
            d_model=d_model,
            stop_ids=plan.stop_ids,
            device=device,
        )
        self._tokens = TokenStore(num_layers=len(self._own.token_places), d_model=d_model, device=device)
        self._tracker = Tracker()
        # vLLM takes what its model takes off the memory that it divides; the table is part of that.
        worker.model_runner.model_memory_usage = (
            getattr(worker.model_runner, "model_memory_usage", 0) + self._table.num_bytes
        )
        observe_passes(worker, view, self._observe)

    @torch.inference_mode()
    def _observe(self, scheduler_output: Any, forward: ForwardPass | None) -> None:
        started: list[int] = []
        for request in scheduler_output.scheduled_new_reqs:
            parameters = getattr(request, "sampling_params", None)
            asked = (getattr(parameters, "extra_args", None) or {}).get(KEY)
            if asked is not None:
                started += self._tracker.start(request.req_id, [SlotSpans.from_json(one) for one in asked])
        self._table.reset(started)
        self._tokens.reset(started)
        if forward is None:
            return
        stretches = self._tracker.stretches(forward.pieces)
        if not stretches or not self._own.places:
            return
        if len(forward.hidden) != self._num_handed_out:
            # The counts of the slots, which lack these tokens, fail their rollouts by name.
            return
        hidden = [forward.hidden[place] for place in self._own.places]
        self._table.add(stretches, hidden, forward.token_ids_T)
        if self._plan.keeps_tokens:
            hidden = [forward.hidden[place] for place in self._own.token_places]
            self._tokens.add(stretches.get("response", []), hidden, forward.token_ids_T)

    @torch.inference_mode()
    def take(self, slots: Sequence[int]) -> dict[str, Any] | None:
        """Return what slots have, and free them.

        Args:
            slots: The slots.

        Returns:
            ``layers`` of this rank, ``values``, ``counts`` and ``id_sums`` of its table; ``token_layers``,
            ``tokens`` and their ``token_ids``. None where this rank has no layer.
        """
        taken = self._table.take(slots)
        kept = self._tokens.take(slots)
        self._tracker.forget(slots)
        if not self._own.places:
            return None
        return {
            "layers": self._own.layers,
            "values": taken.values,
            "counts": taken.counts,
            "id_sums": taken.id_sums,
            "token_layers": self._own.token_layers,
            "tokens": [one.tokens_KND for one in kept],
            "token_ids": [one.token_ids for one in kept],
        }

    def drop(self, slots: Sequence[int]) -> None:
        """Free slots."""
        self._tracker.forget(slots)
        self._tokens.take(slots)


class _Share:
    """The layers that one rank keeps sums of.

    Attributes:
        places: Indices among the hidden states that the rank's model hands out.
        layers: The layers at these places.
        token_places: Those of the places at which every token is kept.
        token_layers: The layers at these.
    """

    def __init__(self, own: Sequence[tuple[int, int]], plan: WorkerPlan) -> None:
        with_tokens = [(place, layer) for place, layer in own if layer in plan.token_layers]
        self.places = [place for place, _ in own]
        self.layers = [layer for _, layer in own]
        self.token_places = [place for place, _ in with_tokens]
        self.token_layers = [layer for _, layer in with_tokens]
