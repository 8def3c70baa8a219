"""The server on vLLM's engine: mixed interventions of concurrent requests, each as it is alone; streams, and an end."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import openai
from persona_atlas.analysis.axis_source import open_axis
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.serving.app import ServerSettings
from persona_atlas.cluster.serving.load import load_live_model
from persona_atlas.jobs.errors import InputError
from rich.console import Console

from live_models import serving_model
from published_axis import save_published_axis
from tiny_families import N_LAYERS
from vllm_families import D_MODEL, save_vllm_family

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

LAYER = 2
EDITS: tuple[dict[str, Any], ...] = (
    {},
    {"cap": 9.0, "layers": [1, 2]},
    {"cap": 9.0, "layers": [1], "positions": "response"},
    {"steer": {"absolute": -20.0}, "layers": [0]},
    {"ablate": "axis", "layers": "all"},
)


@pytest.fixture(scope="module")
def axis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published_axis(tmp_path_factory.mktemp("axis"), N_LAYERS, D_MODEL)


@pytest.fixture(scope="module")
def client(axis: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = save_vllm_family(tmp_path_factory.mktemp("model") / "llama", "llama")
    with pytest.raises(InputError, match="one device") as caught:
        load_live_model(open_axis(str(axis)), str(model), LAYER, Progress(Console(quiet=True)), tensor_parallel=2)
    assert caught.value.field == "--tensor-parallel"
    live = load_live_model(open_axis(str(axis)), str(model), LAYER, Progress(Console(quiet=True)), engine="vllm")
    try:
        with (
            serving_model(live, ServerSettings(max_tokens=40)) as (base, _),
            openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as made,
        ):
            yield made
    finally:
        live.close()


def ask(client: Any, number: int, **more: Any) -> Any:
    edits = EDITS[number % len(EDITS)]
    messages = [{"role": "user", "content": f"Who are you, number {number}?"}]
    given = {"model": client.models.list().data[0].id, "messages": messages, "max_tokens": 20, "temperature": 0}
    return client.chat.completions.create(**(given | more), extra_body=edits)


def test_concurrent_requests_of_mixed_interventions_each_equal_the_same_request_alone(client: Any):
    with ThreadPoolExecutor(15) as threads:
        together = list(threads.map(lambda number: ask(client, number), range(15)))
    texts = set()
    for number, answer in enumerate(together):
        alone = ask(client, number)
        texts.add(answer.choices[0].message.content)
        assert answer.choices[0].message.content == alone.choices[0].message.content
        if alone.persona_atlas["projection"] is not None:
            assert answer.persona_atlas["projection"] == pytest.approx(alone.persona_atlas["projection"], rel=1e-3)
    assert len(texts) > 5


def test_a_cap_is_seen_in_the_projection_of_the_reply(client: Any):
    # The layer is capped at all tokens, so their mean is at the floor at least.
    assert ask(client, 1).persona_atlas["projection"] >= 9.0 - 1e-3


def test_a_stream_has_the_text_of_the_completion_and_a_stop_string_ends_it(client: Any):
    whole = ask(client, 0)
    chunks = list(ask(client, 0, stream=True))
    said = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    text = whole.choices[0].message.content
    assert len(said) > 1
    assert "".join(said) == text
    assert chunks[-1].persona_atlas["projection"] == pytest.approx(whole.persona_atlas["projection"], rel=1e-3)
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    stopped = ask(client, 0, stop=[stop])
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.persona_atlas["projection"] is not None
