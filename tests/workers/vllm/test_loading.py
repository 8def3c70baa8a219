"""What is told when vLLM cannot load a model. vLLM's start is a stand-in that fails after one of its ranks did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Some
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.vllm import loading
from persona_atlas.workers.vllm.inside.runners import hand_out_layers, view_of
from persona_atlas.workers.vllm.rank_failures import told

from requests_of import engine_settings


def no_pipeline() -> None:
    model = Some(set_aux_hidden_state_layers=lambda layers: None, model=Some())
    config = Some(parallel_config=Some(pipeline_parallel_size=2))
    hand_out_layers(Some(model_runner=Some(get_model=lambda: model), vllm_config=config), [0], is_last_stage=True)


def no_layers() -> None:
    hand_out_layers(Some(model_runner=Some(get_model=lambda: Some()), vllm_config=Some()), [0], is_last_stage=True)


def other_vllm() -> None:
    view_of(Some())


def not_divided() -> None:
    raise ValueError("Total number of attention heads (4) must be divisible by tensor parallel size (3).")


def out_of_memory() -> None:
    raise RuntimeError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("rank", "code", "field"),
    [
        (no_pipeline, "no_pipeline", "placement.pipeline_parallel"),
        (no_layers, "no_vllm_model", "placement.engine"),
        (other_vllm, "unknown_vllm", "placement.engine"),
        (not_divided, "bad_parallel", "placement.tensor_parallel"),
        (out_of_memory, "not_enough_memory", "model.source"),
    ],
)
def test_the_error_of_a_rank_keeps_its_code_and_field(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: Callable[[], None], code: str, field: str
):
    raised: list[Exception] = []

    def start(*_: Any) -> None:
        try:
            with told():
                rank()
        except (InputError, ValueError, RuntimeError) as error:
            raised.append(error)
        raise RuntimeError("Engine core initialization failed.")

    monkeypatch.setattr(loading, "_started", start)
    monkeypatch.setattr(loading, "require_known_version", lambda *_: "0.32.0")
    monkeypatch.setattr(loading, "engine_arguments", lambda *_: {})
    monkeypatch.setattr(loading, "set_environment", lambda *_: None)
    with pytest.raises(InputError) as caught:
        loading.start_vllm(engine_settings(tmp_path, layers=[0]), Some(), Some(), Some(), Some(is_async=None))  # pyright: ignore[reportArgumentType]
    assert (caught.value.code, caught.value.field) == (code, field)
    if isinstance(raised[0], InputError):
        assert str(caught.value) == str(raised[0])
        assert caught.value.code == raised[0].code
