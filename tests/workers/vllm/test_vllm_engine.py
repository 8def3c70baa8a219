"""The engine inside vLLM: batches, preemption, its cache, several devices, refusals and its end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from persona_atlas.jobs.engines import VLLM_MIN_TEMPERATURE
from persona_atlas.jobs.errors import EngineDied, InputError, UnitError
from persona_atlas.workers.engine import TokenisedText
from persona_atlas.workers.vllm.arguments import VllmOptions
from persona_atlas.workers.vllm.ranks import shared_memory_of
from persona_atlas.workers.vllm.vllm_engine import VllmEngine
from safetensors.torch import load_file, save_file

from conformance import TOLERANCE, as_generated, as_read, assert_equal_to_plain
from edited_forward import assert_equal_to_edited, interventions_of_every_kind, under
from plain_forward import ALL_POOLINGS, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of
from tiny_families import N_LAYERS, save_tiny_family
from vllm_engines import plain_model, vllm_engine
from vllm_families import D_MODEL, save_vllm_family

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vllm_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def unstoppable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 8 heads that ends no response before its limit, unless by chance."""
    directory = tmp_path_factory.mktemp("unstoppable")
    save_vllm_family(directory, "llama", num_attention_heads=8, num_key_value_heads=8, head_dim=32, eos_token_id=2)
    (directory / "generation_config.json").write_text('{"eos_token_id": 2}')
    return directory


def preemptions(engine) -> list[str]:
    """Note the requests that vLLM preempts from now on."""
    scheduler = engine.vllm.engine_core.engine_core.scheduler
    noted: list[str] = []
    preempt = scheduler._preempt_request

    def note(request, *args, **kwargs):
        noted.append(request.request_id)
        return preempt(request, *args, **kwargs)

    scheduler._preempt_request = note
    return noted


@pytest.mark.parametrize("poolings", [("response_mean",), ALL_POOLINGS])
def test_a_rollout_that_is_preempted_and_computed_again_counts_every_token_once(
    unstoppable: Path, poolings: tuple[str, ...]
):
    # Three blocks of 128 tokens are not enough for four rollouts that grow to more than 128 each.
    block_bytes = 2 * N_LAYERS * 128 * 8 * 32 * 4
    options = VllmOptions(max_num_seqs=4, max_num_batched_tokens=64, kv_cache_bytes=5 * block_bytes)
    with vllm_engine(unstoppable, max_new_tokens=110, poolings=poolings, token_layers=(2,), options=options) as engine:
        noted = preemptions(engine)
        rows = generate(engine, under(requests_of(8), interventions_of_every_kind(D_MODEL, N_LAYERS)))
        assert noted, "the KV cache was not small enough"
        assert_equal_to_edited(rows, plain_model(unstoppable, engine), (2,))


def test_the_token_that_ended_a_turn_does_not_count_where_passes_are_scheduled_before_it_is_known(llama: Path):
    # As vLLM does on GPUs.
    options = VllmOptions(max_num_seqs=8, max_num_batched_tokens=64, is_async=True)
    with vllm_engine(llama, poolings=ALL_POOLINGS, token_layers=(1,), options=options) as engine:
        assert "Async" in type(engine.vllm.engine_core.engine_core.scheduler).__name__
        rows = generate(engine, under(requests_of(24), interventions_of_every_kind(D_MODEL, N_LAYERS)))
        assert any(row.rollout.finish_reason == "stop" for row in rows)
        assert_equal_to_edited(rows, plain_model(llama, engine), (1,))


def test_a_shared_prompt_is_read_from_the_cache_where_no_pooling_is_over_it(llama: Path):
    system = "You are a pirate of the seven seas, who has seen many ships. " * 4
    requests = requests_of(12, system_prompt=system)
    computed = {}
    for poolings in (("response_mean",), ("response_mean", "prompt_mean")):
        with vllm_engine(llama, poolings=poolings) as engine:
            cached: list[int] = []
            manager = engine.vllm.engine_core.engine_core.scheduler.kv_cache_manager
            found = manager.get_computed_blocks

            def note(request, found=found, cached=cached):
                blocks = found(request)
                cached.append(blocks[1])
                return blocks

            manager.get_computed_blocks = note
            assert_equal_to_plain(generate(engine, requests), plain_model(llama, engine))
            computed[poolings] = sum(cached)
    assert computed["response_mean",] > 0
    assert computed["response_mean", "prompt_mean"] == 0


@pytest.mark.parametrize("poolings", [(), ("response_last",)], ids=["tokens alone", "with the last one"])
def test_every_token_is_kept_of_what_the_cache_has_already(llama: Path, poolings: tuple[str, ...]):
    token_ids = tuple(40 + 7 * n % 150 for n in range(400))
    text = TokenisedText("the text", token_ids, ((10, 390),))
    requests = requests_of(4, system_prompt="You are a pirate of the seven seas, who has seen many ships. " * 4)
    with vllm_engine(llama, poolings=poolings, token_layers=(1, 2)) as engine:
        plain = plain_model(llama, engine)
        expected = plain.places(token_ids)["resid_post"][[1, 2], 10:390]
        for _ in range(2):
            (captured,) = engine.capture([text])
            got_KTD = captured.tokens_KTD[0]["resid_post", "tokens"]
            assert got_KTD.shape == (2, 380, 128)
            assert relative_errors(got_KTD.reshape(-1, 128), expected.reshape(-1, 128)).max() < TOLERANCE
        for row in [*generate(engine, requests), *generate(engine, requests)]:
            start, num = len(row.rollout.prompt_token_ids), row.rollout.num_content_tokens
            expected = plain.places(conversation_ids(row.rollout))["resid_post"][[1, 2], start : start + num]
            got_KTD = row.tokens_KTD["resid_post", "tokens"]
            assert got_KTD.shape == (2, num, 128)
            assert num == 0 or relative_errors(got_KTD.reshape(-1, 128), expected.reshape(-1, 128)).max() < TOLERANCE


def test_reading_while_rollouts_are_running_gives_both_what_is_theirs(llama: Path):
    with vllm_engine(llama, poolings=("response_mean", "response_last")) as engine:
        plain = plain_model(llama, engine)
        to_ask = iter(requests_of(20))
        rows = []
        for row in engine.generate(lambda: next(to_ask, None)):
            rows.append(row)
            assert_equal_to_plain(as_read(engine, rows[-2:]), plain)
        assert len(rows) == 20
        assert_equal_to_plain(rows, plain)


def test_an_answer_that_nobody_waits_for_frees_its_place(llama: Path):
    with vllm_engine(llama, poolings=("response_mean",)) as engine:
        free = engine.num_free_slots
        for _ in range(3):
            to_ask = iter(requests_of(30))
            stream = engine.generate(lambda to_ask=to_ask: next(to_ask, None))
            next(stream)
            assert isinstance(stream, Generator)
            stream.close()
            assert engine.num_free_slots == free
        assert_equal_to_plain(generate(engine, requests_of(10)), plain_model(llama, engine))


def test_the_whole_context_may_be_used_and_no_token_more(llama: Path):
    requests = requests_of(1)
    with vllm_engine(llama, poolings=("response_mean",), max_new_tokens=8) as engine:
        prompt = len(engine.model.renderer.render(requests[0].messages))
    whole = 512 - prompt
    with vllm_engine(llama, poolings=("response_mean",), max_new_tokens=whole) as engine:
        plain = plain_model(llama, engine)
        assert_equal_to_plain(generate(engine, requests), plain)
        text = TokenisedText("the text", tuple(40 + n % 150 for n in range(512)), ((500, 512),))
        (captured,) = engine.capture([text])
        expected_LD = plain.places(text.token_ids)["resid_post"][:, 500:].mean(axis=1)
        assert relative_errors(captured.vectors_LD[0]["resid_post", "response_mean"], expected_LD).max() < TOLERANCE
        with pytest.raises(UnitError, match="513") as caught:
            engine.capture([TokenisedText("the text", (*text.token_ids, 41), ((500, 513),))])
        assert caught.value.code == "too_long"
    with (
        vllm_engine(llama, poolings=("response_mean",), max_new_tokens=whole + 1) as engine,
        pytest.raises(UnitError, match="context of 512") as caught,
    ):
        generate(engine, requests)
    assert caught.value.code == "too_long"


def test_a_kv_cache_that_is_too_small_is_not_called_the_context_of_the_model(unstoppable: Path):
    # Room for one block of 128 tokens, whose last position is that of a token which is dropped.
    block_bytes = 2 * N_LAYERS * 128 * 8 * 32 * 4
    options = VllmOptions(max_num_seqs=4, max_num_batched_tokens=64, kv_cache_bytes=2 * block_bytes)
    with (
        pytest.raises(InputError, match="KV cache has room for conversations of 127 tokens") as caught,
        vllm_engine(unstoppable, poolings=("response_mean",), max_new_tokens=200, options=options),
    ):
        pass
    assert (caught.value.code, caught.value.field) == ("kv_cache_too_small", "sampling.max_new_tokens")
    with vllm_engine(unstoppable, poolings=("response_mean",), max_new_tokens=120, options=options) as engine:
        with pytest.raises(UnitError, match="127 that vLLM's KV cache") as refused:
            generate(engine, requests_of(1))
        assert refused.value.code == "kv_cache_too_small"
        with pytest.raises(UnitError, match="its 200 tokens exceed the 127") as refused:
            engine.capture([TokenisedText("the text", tuple(range(40, 240)), ((5, 9),))])
        assert refused.value.code == "kv_cache_too_small"


def test_a_temperature_that_vllm_would_raise_is_refused_before_it_is_started(llama: Path):
    with (
        pytest.raises(InputError, match=r"is 0\.005") as caught,
        vllm_engine(llama, poolings=("response_mean",), temperature=0.005),
    ):
        pass
    assert caught.value.field == "sampling.temperature"
    assert "builtin" in (caught.value.hint or "")
    sampling_params = pytest.importorskip("vllm.sampling_params")
    assert sampling_params.SamplingParams(temperature=0.005).temperature == VLLM_MIN_TEMPERATURE
    # Whoever only reads does not sample.
    wanted = engine_settings(llama, layers=[1], poolings=("response_mean",), temperature=0.005)
    engine = VllmEngine(wanted, VllmOptions(max_num_seqs=4, kv_cache_bytes=2**26), generates=False)
    try:
        (captured,) = engine.capture([TokenisedText("the text", tuple(range(40, 60)), ((5, 9),))])
        assert np.isfinite(captured.vectors_LD[0]["resid_post", "response_mean"]).all()
    finally:
        engine.close()


def test_greedy_responses_are_those_of_plain_passes_and_end_as_the_built_in_engine_s(llama: Path):
    with vllm_engine(llama, poolings=("response_mean",), temperature=0.0) as engine:
        plain = plain_model(llama, engine)
        for row in generate(engine, requests_of(6)):
            ids = list(row.rollout.prompt_token_ids)
            for token in row.rollout.response_token_ids:
                assert token == int(plain.logits(ids).argmax())
                ids.append(token)
            ended = row.rollout.response_token_ids[-1] in engine.model.stop_ids
            assert row.rollout.finish_reason == ("stop" if ended else "length")
            assert row.rollout.num_content_tokens == len(row.rollout.response_token_ids) - ended
            assert len(row.rollout.response_token_ids) <= 20


def test_only_the_asked_layers_come_back_in_their_order(llama: Path):
    with vllm_engine(llama, layers=(1, 2), poolings=("response_last", "response_mean")) as engine:
        plain = plain_model(llama, engine)
        for row in generate(engine, requests_of(6)):
            assert list(row.vectors_LD) == [("resid_post", "response_last"), ("resid_post", "response_mean")]
            if row.rollout.has_vector:
                expected = pool(plain.run(conversation_ids(row.rollout))[0], row.rollout)
                for (_, pooling), got_LD in row.vectors_LD.items():
                    assert relative_errors(got_LD, expected[pooling][[1, 2]]).max() < TOLERANCE


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)], ids=["tensor parallel", "pipeline parallel"])
def test_a_model_over_two_devices_gives_what_one_gives(
    unstoppable: Path, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    tensor_parallel, pipeline_parallel = sizes
    with vllm_engine(
        unstoppable,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        poolings=ALL_POOLINGS,
        token_layers=(0, 3),
    ) as engine:
        ranks = [psutil.Process(pid) for pid in engine.ranks.pids]
        assert len(ranks) == 2
        plain = plain_model(unstoppable, engine)
        rows = generate(engine, under(requests_of(16), interventions_of_every_kind(D_MODEL, N_LAYERS)))
        for mode in (as_generated, as_read):
            assert_equal_to_edited(mode(engine, rows), plain, (0, 3))
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


def test_the_death_of_a_rank_ends_the_engine_and_no_process_is_left(unstoppable: Path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with vllm_engine(unstoppable, tensor_parallel=2, poolings=("response_mean",), max_new_tokens=200) as engine:
        ranks = [psutil.Process(pid) for pid in engine.ranks.pids]
        to_ask = iter(requests_of(40))
        stream = engine.generate(lambda: next(to_ask, None))
        next(stream)
        ranks[1].kill()
        began = time.monotonic()
        with pytest.raises(EngineDied):
            list(stream)
        assert time.monotonic() - began < 10
        with pytest.raises(EngineDied):
            generate(engine, requests_of(1))
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


def test_a_model_that_vllm_has_no_kernel_for_is_refused_and_leaves_no_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    directory = save_vllm_family(tmp_path / "model", "gpt_oss")
    before = set(Path("/dev/shm").iterdir())
    with (
        pytest.raises(InputError, match="mixture-of-experts layers divided over 2") as caught,
        vllm_engine(directory, tensor_parallel=2, poolings=("response_mean",)),
    ):
        pass
    assert (caught.value.code, caught.value.field) == ("no_moe_kernel", "placement.tensor_parallel")
    # Other programs of the machine may have started a vLLM meanwhile, which has its memory mapped.
    left = {path for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith("vllm_")}
    assert not left - shared_memory_of(psutil.pids())


def test_after_its_end_every_call_says_so(llama: Path):
    with vllm_engine(llama, poolings=("response_mean",)) as engine:
        pass
    engine.close()
    with pytest.raises(EngineDied, match="closed"):
        generate(engine, requests_of(1))
    with pytest.raises(EngineDied):
        engine.capture([TokenisedText("a text", tuple(range(40, 60)), ((5, 9),))])


def broken(directory: Path, target: Path) -> Path:
    shutil.copytree(directory, target)
    weights = load_file(target / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][5, 7] = torch.nan
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_number_that_is_not_finite_fails_the_call_and_names_the_layer_where_it_began(llama: Path, tmp_path: Path):
    with vllm_engine(broken(llama, tmp_path / "broken"), poolings=("response_mean", "prompt_last")) as engine:
        with pytest.raises(UnitError, match="layer 2") as caught:
            generate(engine, requests_of(3))
        assert caught.value.code == "not_finite"
        with pytest.raises(UnitError, match="layer 2") as caught:
            engine.capture([TokenisedText("a text", tuple(range(40, 60)), ((5, 9),))])
        assert caught.value.code == "not_finite"


def test_what_it_cannot_do_is_refused_by_name(llama: Path):
    with pytest.raises(InputError, match="attn_out") as caught, vllm_engine(llama, hook_points=["attn_out"]):
        pass
    assert caught.value.field == "capture.hook_points"
    with vllm_engine(llama, poolings=("response_mean",)) as engine, pytest.raises(UnitError, match=r"\[5, 21\)"):
        engine.capture([TokenisedText("the text", tuple(range(40, 60)), ((5, 21),))])


def test_the_record_says_what_canaries_are_compared_with_and_that_a_cpu_takes_no_seeds(
    llama: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("persona_atlas.workers.vllm.recompute.MOST_PLAIN_PARAMETERS", 10)
    with vllm_engine(llama, poolings=ALL_POOLINGS, token_layers=(1,)) as engine:
        assert "not reproducible" in engine.passes
        assert "prefill" in engine.passes
        row = next(row for row in generate(engine, requests_of(8)) if row.rollout.has_vector)
        canary = engine.canary(row)
        assert canary is not None
        assert max(canary.relative_error_L) < TOLERANCE
        wrong = {array: np.roll(values, 1, axis=0) for array, values in row.vectors_LD.items()}
        row.vectors_LD.update(wrong)
        mixed = engine.canary(row)
        assert mixed is not None
        assert min(mixed.relative_error_L) > engine.canary_limit


def test_without_a_capture_rollouts_have_no_vectors(llama: Path):
    options = VllmOptions(max_num_seqs=8, captures=False)
    with vllm_engine(llama, poolings=("response_mean",), options=options) as engine:
        rows = generate(engine, requests_of(8))
        assert all(row.vectors_LD == {} for row in rows)
        assert any(row.rollout.num_content_tokens for row in rows)


def test_a_model_that_it_does_not_capture_is_refused(tmp_path: Path):
    directory = save_tiny_family(tmp_path / "gpt2", "gpt2")
    with pytest.raises(InputError, match="GPT2LMHeadModel") as caught, vllm_engine(directory):
        pass
    assert caught.value.code == "no_vllm_model"
