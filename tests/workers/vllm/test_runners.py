"""What is relied on inside of vLLM's model runners: shown passes, and refusals by name. The runners are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace as Some
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.vllm.inside.runners import (
    ForwardPass,
    hand_out_layers,
    observe_passes,
    prepare_passes,
    view_of,
)
from persona_atlas.workers.vllm.inside.tracking import Piece

HIDDEN = [torch.zeros(4, 2), torch.ones(4, 2)]


class Model:
    """A model that hands out hidden states, as vLLM's do; ``model`` is its decoder."""

    def __init__(self, *, over_stages: bool = True) -> None:
        self.asked: tuple[int, ...] = ()
        self.model = Some(
            supports_aux_hidden_states_over_pp=over_stages,
            AUX_HIDDEN_STATE_KEY="aux_",
            _aux_slot_base_cached=3,
            _aux_upstream_total_cached=3,
        )

    def set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None:
        self.asked = layers


class Sent:
    """What a stage sends on."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors


def worker_of(*, second: bool, model: Any = None, stages: int = 1, output: Any = None) -> Any:
    model = model or Model()
    batch = Some(
        req_ids=["b", "a"],
        num_reqs=2,
        num_computed_tokens_cpu=np.array([7, 0, 99]),
        num_computed_tokens_np=np.array([7, 0]),
        num_scheduled_tokens=np.array([1, 3]),
        input_ids=torch.arange(4),
    )
    runner = Some(
        input_batch=batch,
        input_ids=Some(gpu=torch.arange(10, 20)),
        req_states=None,
        execute_model_state=Some(aux_hidden_states=HIDDEN, input_batch=batch),
        use_aux_hidden_state_outputs=False,
        get_model=lambda: model,
        _prepare_inputs=lambda *_: "inputs",
        prepare_inputs=lambda *_: batch,
        execute_model=lambda scheduler_output, intermediate=None, dummy_run=False: output,
    )
    config = Some(parallel_config=Some(pipeline_parallel_size=stages))
    return Some(model_runner=runner, use_v2_model_runner=second, vllm_config=config, device="cpu")


SCHEDULED = Some(total_num_scheduled_tokens=4, num_scheduled_tokens={"a": 3, "b": 1})


def observed(worker: Any, **options: Any) -> list[ForwardPass | None]:
    seen: list[ForwardPass | None] = []
    observe_passes(worker, view_of(worker), lambda _, forward: seen.append(forward))
    worker.model_runner.execute_model(SCHEDULED, None, **options)
    return seen


@pytest.mark.parametrize("second", [False, True])
def test_both_runners_show_the_requests_of_a_pass_in_the_order_of_its_tokens(second: bool):
    (forward,) = observed(worker_of(second=second))
    assert forward is not None
    assert forward.pieces == [Piece("b", 7, 1), Piece("a", 0, 3)]
    assert forward.hidden is HIDDEN
    assert forward.token_ids_T[:4].tolist() == ([0, 1, 2, 3] if second else [10, 11, 12, 13])


def test_a_dummy_pass_is_not_observed_and_an_empty_one_shows_nothing():
    assert observed(worker_of(second=True), dummy_run=True) == []
    worker = worker_of(second=False)
    seen: list[ForwardPass | None] = []
    observe_passes(worker, view_of(worker), lambda _, forward: seen.append(forward))
    worker.model_runner.execute_model(Some(total_num_scheduled_tokens=0))
    assert seen == [None]


@pytest.mark.parametrize("second", [False, True])
def test_before_a_pass_its_requests_are_shown_once_its_inputs_are_made(second: bool):
    worker = worker_of(second=second)
    runner = worker.model_runner
    events: list[Any] = []

    def execute(scheduler_output: Any, dummy_run: bool = False) -> None:
        if not dummy_run:
            events.append(getattr(runner, view_of(worker).preparing)(scheduler_output) is not None)
        events.append("ran")

    runner.execute_model = execute
    prepare_passes(worker, view_of(worker), lambda _: events.append("begun"), events.append)
    runner.execute_model(SCHEDULED)
    assert events == ["begun", [Piece("b", 7, 1), Piece("a", 0, 3)], True, "ran"]
    runner.execute_model(SCHEDULED, dummy_run=True)
    assert events[4:] == ["ran"]


def test_a_stage_before_the_last_keeps_its_hidden_states_and_sends_on_what_it_would_without_them():
    output = Sent({"aux_1": HIDDEN[1], "hidden_states": "h", "aux_0": HIDDEN[0], "residual": "r"})
    worker = worker_of(second=False, stages=2, output=output)
    seen: list[ForwardPass | None] = []
    observe_passes(worker, view_of(worker), lambda _, forward: seen.append(forward))
    # A captured graph returns the same object for every pass.
    for _ in range(2):
        sent = worker.model_runner.execute_model(SCHEDULED, None)
        assert sent.tensors == {"hidden_states": "h", "residual": "r"}
    for forward in seen:
        assert forward is not None
        assert [states is wanted for states, wanted in zip(forward.hidden, HIDDEN, strict=True)] == [True, True]


def test_layers_are_asked_for_by_the_stream_after_them():
    worker = worker_of(second=False)
    hand_out_layers(worker, [0, 2], is_last_stage=True)
    assert worker.model_runner.get_model().asked == (1, 3)
    assert worker.model_runner.use_aux_hidden_state_outputs


def test_every_stage_of_a_pipeline_numbers_its_own_layers_and_waits_for_no_other_s():
    worker = worker_of(second=False, stages=2)
    hand_out_layers(worker, [2, 3], is_last_stage=False)
    inner = worker.model_runner.get_model().model
    assert (inner._aux_slot_base_cached, inner._aux_upstream_total_cached) == (0, 0)
    assert not worker.model_runner.use_aux_hidden_state_outputs, "it returns nothing beside what it sends on"


@pytest.mark.parametrize("second", [False, True])
def test_a_runner_that_lacks_what_is_relied_on_is_refused_by_that_name(second: bool):
    worker = worker_of(second=second)
    view_of(worker)
    del worker.model_runner.execute_model_state
    with pytest.raises(InputError, match="execute_model_state") as caught:
        view_of(worker)
    assert caught.value.code == "unknown_vllm"
    assert "0.32.0" in str(caught.value.hint)


def test_a_model_that_hands_out_nothing_or_not_over_stages_is_refused():
    with pytest.raises(InputError, match="does not hand out") as caught:
        hand_out_layers(worker_of(second=False, model=Some()), [0], is_last_stage=True)
    assert caught.value.field == "placement.engine"
    with pytest.raises(InputError, match="stages") as caught:
        hand_out_layers(worker_of(second=False, model=Model(over_stages=False), stages=2), [0], is_last_stage=True)
    assert caught.value.field == "placement.pipeline_parallel"
