"""What the capture relies on inside of vLLM's model runners: the one place that knows their members.

vLLM has two model runners. The first serves CPUs, and GPUs where the second lacks a feature; the second serves GPUs.
Both run a pass in ``execute_model`` and keep what it computed in ``execute_model_state`` until a token is sampled from
it. None of these members is part of vLLM's interface, so they are looked for by name when the model is loaded, and a
runner that lacks one is refused. Does not import vLLM.
Axes: T tokens of one pass, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ....jobs.errors import InputError
from ..versions import require_members
from .tracking import Piece


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What one pass computed on one rank.

    Attributes:
        pieces: The requests of the pass, in the order of their tokens in it.
        hidden: For every layer that this rank was told to hand out the hidden states, ``(T, D)`` or, padded, longer.
        token_ids_T: The tokens that the pass read, or more.
    """

    pieces: list[Piece]
    hidden: Sequence[torch.Tensor]
    token_ids_T: torch.Tensor


class RunnerView(Protocol):
    """How a version of the model runner shows a pass that it has run."""

    @property
    def required(self) -> tuple[str, ...]:
        """Members of the runner that this view reads, besides those that every view needs."""
        ...

    @property
    def preparing(self) -> str:
        """Name of the method that makes the inputs of a pass, of any but a dummy one."""
        ...

    def prepared(self, runner: Any, scheduler_output: Any, inputs: Any) -> list[Piece]:
        """Return the requests of the coming pass, from what ``preparing`` has left and returned."""
        ...

    def pieces(self, runner: Any, scheduler_output: Any) -> list[Piece]:
        """Return the requests of the last pass."""
        ...

    def token_ids(self, runner: Any) -> torch.Tensor:
        """Return the tokens that the last pass read."""
        ...


class FirstRunner:
    """The first version: ``vllm/v1/worker/gpu_model_runner.py``, and that of CPUs, which inherits from it."""

    preparing = "_prepare_inputs"
    required = ("input_batch", "input_ids", "execute_model_state", "use_aux_hidden_state_outputs", preparing)

    def prepared(self, runner: Any, scheduler_output: Any, inputs: Any) -> list[Piece]:
        """Return the requests of the coming pass, from the persistent batch."""
        return self.pieces(runner, scheduler_output)

    def pieces(self, runner: Any, scheduler_output: Any) -> list[Piece]:
        """Return the requests of the last pass, from the persistent batch."""
        batch = runner.input_batch
        lengths = scheduler_output.num_scheduled_tokens
        names = batch.req_ids[: batch.num_reqs]
        positions = batch.num_computed_tokens_cpu[: len(names)].tolist()
        return [Piece(name, position, lengths[name]) for name, position in zip(names, positions, strict=True)]

    def token_ids(self, runner: Any) -> torch.Tensor:
        """Return the buffer of input ids, whose first entries are those of the last pass."""
        return runner.input_ids.gpu


class SecondRunner:
    """The second version: ``vllm/v1/worker/gpu/model_runner.py``. Written from its source, and not run yet."""

    preparing = "prepare_inputs"
    required = ("execute_model_state", "use_aux_hidden_state_outputs", "req_states", preparing)

    def prepared(self, runner: Any, scheduler_output: Any, inputs: Any) -> list[Piece]:
        """Return the requests of the coming pass, from the batch that was made for it."""
        return _pieces_of(inputs)

    def pieces(self, runner: Any, scheduler_output: Any) -> list[Piece]:
        """Return the requests of the last pass, from the batch that was made for it."""
        return _pieces_of(runner.execute_model_state.input_batch)

    def token_ids(self, runner: Any) -> torch.Tensor:
        """Return the input ids of the batch."""
        return runner.execute_model_state.input_batch.input_ids


def _pieces_of(batch: Any) -> list[Piece]:
    return [
        Piece(name, int(position), int(length))
        for name, position, length in zip(
            batch.req_ids, batch.num_computed_tokens_np, batch.num_scheduled_tokens, strict=True
        )
    ]


def view_of(worker: Any) -> RunnerView:
    """Choose the view of a worker's runner, after checking that it has what the view relies on.

    Args:
        worker: A worker of vLLM whose model is loaded.

    Raises:
        InputError: A member is missing; names it.
    """
    require_members(worker, ("model_runner", "use_v2_model_runner", "vllm_config", "device"))
    view: RunnerView = SecondRunner() if worker.use_v2_model_runner else FirstRunner()
    require_members(worker.model_runner, (*view.required, "execute_model", "get_model"))
    return view


def hand_out_layers(worker: Any, layers: Sequence[int], *, is_last_stage: bool) -> None:
    """Make the model of a worker hand out the outputs of decoder layers, in this order, with every pass.

    Args:
        worker: A worker of vLLM whose model is loaded and has not run yet.
        layers: 0-based decoder layers of this worker's stage of the pipeline, ascending.
        is_last_stage: Whether the worker has the last decoder layers.

    Raises:
        InputError: The model cannot hand them out.
    """
    runner = worker.model_runner
    model = runner.get_model()
    if not callable(getattr(model, "set_aux_hidden_state_layers", None)):
        raise InputError(
            f"vLLM's {type(model).__name__} does not hand out the hidden states between its decoder layers.",
            code="no_vllm_model",
            field="placement.engine",
            hint="Set it to builtin, or choose a model that vLLM's engine captures (docs/engine.md).",
        )
    # vLLM counts the streams between the layers: entry L + 1 is what decoder layer L returns.
    model.set_aux_hidden_state_layers(tuple(layer + 1 for layer in layers))
    if worker.vllm_config.parallel_config.pipeline_parallel_size > 1:
        _keep_to_own_stage(model)
        _allocate_what_arrives(runner, model)
    # The last stage returns them beside its output, if there are any; the others put them into what they send on.
    runner.use_aux_hidden_state_outputs = is_last_stage and bool(layers)


def _keep_to_own_stage(model: Any) -> None:
    """Let every stage of a pipeline number its own layers from 0, and expect none from the stages before it."""
    inner: Any = getattr(model, "model", None)
    if not getattr(inner, "supports_aux_hidden_states_over_pp", False):
        raise InputError(
            f"vLLM's {type(model).__name__} does not hand out hidden states over the stages of a pipeline.",
            code="no_pipeline",
            field="placement.pipeline_parallel",
            hint="Set it to 1 and divide the layers' tensors instead: placement.tensor_parallel.",
        )
    require_members(inner, ("_aux_slot_base_cached", "_aux_upstream_total_cached", "AUX_HIDDEN_STATE_KEY"))
    inner._aux_slot_base_cached = 0
    inner._aux_upstream_total_cached = 0


def _allocate_what_arrives(runner: Any, model: Any) -> None:
    """Allocate what a later stage receives: the first runner does so in its warm-up, which it may skip on CPUs."""
    if getattr(runner, "intermediate_tensors", "not there") is None:
        runner.intermediate_tensors = model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )


def observe_passes(worker: Any, view: RunnerView, observe: Callable[[Any, ForwardPass | None], None]) -> None:
    """Call a function after every forward pass of a worker.

    Args:
        worker: A worker of vLLM.
        view: The view of its runner.
        observe: Gets the scheduler's output and what the pass computed; None where it computed nothing.
    """
    runner = worker.model_runner
    execute_model = runner.execute_model

    def execute_and_observe(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        output = execute_model(scheduler_output, *args, **kwargs)
        # The second runner makes its dummy passes here too, while it measures memory and captures graphs.
        if kwargs.get("dummy_run", False):
            return output
        if not scheduler_output.total_num_scheduled_tokens:
            observe(scheduler_output, None)
            return output
        hidden, output = _handed_out(runner, output)
        observe(scheduler_output, ForwardPass(view.pieces(runner, scheduler_output), hidden, view.token_ids(runner)))
        return output

    runner.execute_model = execute_and_observe


def prepare_passes(
    worker: Any, view: RunnerView, begin: Callable[[Any], None], prepare: Callable[[Sequence[Piece]], None]
) -> None:
    """Call functions before every forward pass of a worker.

    Args:
        worker: A worker of vLLM.
        view: The view of its runner.
        begin: Gets the scheduler's output, of a pass without tokens too.
        prepare: Gets the requests of the pass, in the order of their tokens in it, once vLLM has made its inputs and
            before the model runs.
    """
    runner = worker.model_runner
    execute_model = runner.execute_model
    make_inputs = getattr(runner, view.preparing)
    scheduled: list[Any] = []

    def begin_and_execute(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("dummy_run", False):
            begin(scheduler_output)
            scheduled[:] = [scheduler_output]
        return execute_model(scheduler_output, *args, **kwargs)

    def make_and_prepare(*args: Any, **kwargs: Any) -> Any:
        inputs = make_inputs(*args, **kwargs)
        prepare(view.prepared(runner, scheduled[0], inputs))
        return inputs

    runner.execute_model = begin_and_execute
    setattr(runner, view.preparing, make_and_prepare)


def _handed_out(runner: Any, output: Any) -> tuple[Sequence[torch.Tensor], Any]:
    """Return the hidden states of a pass, and what is left of its output."""
    tensors = getattr(output, "tensors", None)
    if not isinstance(tensors, dict):
        state = runner.execute_model_state
        return (state and state.aux_hidden_states) or [], output
    # A stage before the last. What it kept would otherwise be sent to the next one with every pass. The output may be
    # that of a captured graph, which returns the same object every time: it must stay as it is.
    key = runner.get_model().model.AUX_HIDDEN_STATE_KEY
    own = sorted((name for name in tensors if name.startswith(key)), key=lambda name: int(name[len(key) :]))
    others = {name: tensor for name, tensor in tensors.items() if name not in own}
    return [tensors[name] for name in own], type(output)(others)
