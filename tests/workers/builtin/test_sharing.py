"""Which texts share a pass: found out when the model is loaded, and right in either way.

Every vector is that of a plain forward pass over its own conversation, whatever the family does with a packed pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.jobs.engines import FAMILIES_RUN_ALONE, VLLM_ARCHITECTURES
from persona_atlas.jobs.errors import InputError, TransientError, UnitError
from persona_atlas.jobs.interventions import AddVector, Cap, Direction, Intervention
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.loaded_model import LoadedModel, load_model
from persona_atlas.workers.builtin.passes import packed, registration
from persona_atlas.workers.builtin.passes.packed import PackedPass
from persona_atlas.workers.engine import CapturedRollout, EngineSettings, TokenisedText
from persona_atlas.workers.models.checkpoints.architecture import other_layer_kinds

from other_families import ALONE_FAMILIES, LONGROPE_BORDER, LONGROPE_FAMILIES, SHARING_FAMILIES
from plain_forward import ALL_POOLINGS, PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of, texts_of
from tiny_families import D_MODEL, FAMILIES, N_LAYERS, save_tiny_family, save_tiny_model

TOLERANCE = 1e-4
MAX_NEW = 10


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}
    others = ALONE_FAMILIES | LONGROPE_FAMILIES | SHARING_FAMILIES

    def find(family: str) -> Path:
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            made[family] = (
                save_tiny_model(directory, others[family]())
                if family in others
                else save_tiny_family(directory, family)
            )
        return made[family]

    return find


def settings_of(directory: Path, **more: Any) -> EngineSettings:
    given: dict[str, Any] = {"poolings": ALL_POOLINGS, "max_new_tokens": MAX_NEW, "token_layers": (1,)}
    return engine_settings(directory, layers=range(N_LAYERS), **(given | more))


def as_read(engine: BuiltinEngine, rows: Sequence[CapturedRollout]) -> list[CapturedRollout]:
    return [
        CapturedRollout(row.rollout, text.vectors_LD[0], text.tokens_KTD[0], row.user_span, row.intervention)
        for row, text in zip(rows, engine.capture(texts_of(rows)), strict=True)
    ]


def assert_plain(rows: Sequence[CapturedRollout], plain: PlainModel) -> None:
    """Each row is that of the plain pass over its conversation, at every layer and pooling, and at every token."""
    for row in rows:
        states_LTD = plain.outputs(conversation_ids(row.rollout), len(row.rollout.prompt_token_ids))
        expected = pool(states_LTD, row.rollout)
        for (_, pooling), got_LD in row.vectors_LD.items():
            if row.rollout.has_vector or not pooling.startswith("response_"):
                assert relative_errors(got_LD, expected[pooling]).max() < TOLERANCE, (row.rollout.address, pooling)
        for got_KTD in row.tokens_KTD.values():
            expected_TD = states_LTD[1, len(row.rollout.prompt_token_ids) :]
            assert relative_errors(got_KTD[0], expected_TD).max(initial=0) < TOLERANCE


def assert_right_in_both_modes(engine: BuiltinEngine, directory: Path, num_requests: int = 7) -> list[CapturedRollout]:
    rows = generate(engine, requests_of(num_requests))
    plain = PlainModel(directory)
    assert_plain(rows, plain)
    assert_plain(as_read(engine, rows), plain)
    canary = engine.canary(max(rows, key=lambda row: row.rollout.num_content_tokens))
    assert canary is not None
    assert max(canary.relative_error_L) < TOLERANCE
    return rows


def test_the_families_that_run_alone_are_those_whose_trial_fails_here():
    configs = [make() for make in ALONE_FAMILIES.values()]
    known = {str(config.model_type) for config in configs if not other_layer_kinds(config)}
    assert {"bloom", "mpt", "rwkv"} < known <= FAMILIES_RUN_ALONE
    assert not FAMILIES_RUN_ALONE & {str(make().model_type) for make in SHARING_FAMILIES.values()}
    assert not FAMILIES_RUN_ALONE & {entry.family for entry in VLLM_ARCHITECTURES.values()}


@pytest.mark.parametrize("family", sorted(ALONE_FAMILIES))
def test_a_family_that_would_mix_its_texts_runs_each_alone(directory_of: Callable[[str], Path], family: str):
    directory = directory_of(family)
    engine = BuiltinEngine(settings_of(directory))
    assert engine.loaded.sharing.up_to == 0
    assert engine.passes.startswith("All texts have forward passes of their own")
    rows = assert_right_in_both_modes(engine, directory, 5)
    assert len({row.rollout.num_content_tokens for row in rows}) > 1


@pytest.mark.parametrize("family", sorted(SHARING_FAMILIES))
@pytest.mark.parametrize("few_scores_bytes", [2**21, 0])
def test_attention_sinks_and_chunks_are_right_in_shared_passes(
    directory_of: Callable[[str], Path], family: str, few_scores_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    # 0: as on a GPU, where torch's kernel computes what it can.
    monkeypatch.setattr(packed, "_FEW_SCORES_BYTES", few_scores_bytes)
    directory = directory_of(family)
    engine = BuiltinEngine(settings_of(directory, max_new_tokens=20))
    assert engine.passes == ""
    rows = assert_right_in_both_modes(engine, directory)
    # Longer than a window or chunk of 16 tokens, and several of them decode at a time.
    assert min(len(row.rollout.prompt_token_ids) for row in rows) > 16


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_is_not_taken_for_mixing(directory_of: Callable[[str], Path], family: str, dtype: str):
    points = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    engine = BuiltinEngine(settings_of(directory_of(family), dtype=dtype, hook_points=points))
    assert engine.passes == ""


def mixing(strength: float, *, is_causal: bool) -> Callable[[EngineSettings], tuple[Any, Any]]:
    """Load a model one of whose layers adds the mean of other tokens: of those before, or of all."""

    def add_mean(_module: Any, _args: Any, output: Any) -> Any:
        states_1ND = output[0] if isinstance(output, tuple) else output
        counts_N1 = torch.arange(1, states_1ND.shape[1] + 1)[:, None]
        before_1ND = states_1ND.cumsum(dim=1) / counts_N1.to(states_1ND.dtype)
        mean_1ND = before_1ND if is_causal else before_1ND[:, -1:]
        changed_1ND = states_1ND + strength * mean_1ND
        return (changed_1ND, *output[1:]) if isinstance(output, tuple) else changed_1ND

    def load(settings: EngineSettings) -> tuple[Any, Any]:
        model, tokenizer = load_model(settings)
        model.model.layers[1].register_forward_hook(add_mean)
        return model, tokenizer

    return load


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("strength", [0.05, 0.3])
def test_a_layer_that_mixes_tokens_outside_of_attention_is_found_by_trial(
    directory_of: Callable[[str], Path], strength: float, dtype: str
):
    settings = settings_of(directory_of("llama"), dtype=dtype)
    engine = BuiltinEngine(settings, mixing(strength, is_causal=True))
    assert "a text changes the states of another in the same pass" in engine.passes
    if strength > 0.1:
        # Nor is its cache right: the mean of a single token is that token.
        assert not engine.loaded.sharing.has_cache
    if dtype == "float32" and strength > 0.1:
        plain = PlainModel(settings.directory)
        plain.model, _ = mixing(0.3, is_causal=True)(settings)
        plain.layers = list(plain.model.model.layers)
        rows = generate(engine, requests_of(4))
        assert_plain(rows, plain)
        assert_plain(as_read(engine, rows), plain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_is_not_causal_is_refused_by_name(directory_of: Callable[[str], Path], dtype: str):
    with pytest.raises(InputError, match="a LlamaForCausalLM is not causal") as caught:
        BuiltinEngine(settings_of(directory_of("llama"), dtype=dtype), mixing(0.3, is_causal=False))
    assert caught.value.field == "model.source"


@pytest.mark.parametrize("argument", [{"position_bias": torch.zeros(1)}, {"is_causal": False}])
def test_an_argument_that_shared_passes_do_not_know_is_not_ignored(
    directory_of: Callable[[str], Path], argument: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    functions = type(registration.AttentionInterface())
    get = functions.get_interface

    def with_argument(self: Any, name: str, default: Any) -> Any:
        chosen = get(self, name, default)
        return (lambda *args, **more: chosen(*args, **more, **argument)) if name == registration.ATTENTION else chosen

    monkeypatch.setattr(functions, "get_interface", with_argument)
    engine = BuiltinEngine(settings_of(directory_of("llama")))
    assert next(iter(argument)) in engine.passes
    assert_right_in_both_modes(engine, directory_of("llama"), 3)


def test_an_intervention_applies_to_a_text_alone(directory_of: Callable[[str], Path]):
    directory = directory_of("bloom")
    vector = Direction.of(np.random.default_rng(0).normal(size=D_MODEL))
    edits = (AddVector(1, vector, 0.5), Cap(2, vector, 0.5, "response"))
    intervention = Intervention(edits)
    requests = [
        RolloutRequest(one.address, one.messages, one.seed, intervention=intervention) for one in requests_of(3)
    ]
    engine = BuiltinEngine(settings_of(directory))
    rows = generate(engine, requests)
    plain = PlainModel(directory, edits=edits)
    assert_plain(rows, plain)
    for row in rows:
        assert row.rollout.edits is not None
        content = row.rollout.num_content_tokens
        assert [one.num_tokens for one in row.rollout.edits] == [len(row.rollout.prompt_token_ids) + content, content]
    assert_plain(as_read(engine, rows), plain)


def test_a_text_alone_samples_what_the_plain_model_would(directory_of: Callable[[str], Path]):
    for family in ("bloom", "openai_gpt"):
        engine = BuiltinEngine(settings_of(directory_of(family), temperature=0.0))
        # With transformers' cache, and without: openai-gpt has none.
        assert engine.loaded.sharing.has_cache == (family == "bloom")
        assert_greedy(generate(engine, requests_of(4)), PlainModel(directory_of(family)))


def assert_greedy(rows: Sequence[CapturedRollout], plain: PlainModel) -> None:
    for row in rows:
        ids = list(row.rollout.prompt_token_ids)
        for token in row.rollout.response_token_ids:
            assert int(plain.logits(ids).argmax()) == token
            ids.append(token)


@pytest.mark.parametrize("family", sorted(LONGROPE_FAMILIES))
def test_responses_on_both_sides_of_the_border_and_across_it_are_those_of_plain_passes(
    directory_of: Callable[[str], Path], family: str
):
    directory = directory_of(family)
    engine = BuiltinEngine(settings_of(directory, temperature=0.0, max_new_tokens=20))
    assert engine.loaded.sharing.up_to == LONGROPE_BORDER
    assert f"more than {LONGROPE_BORDER} tokens" in engine.passes
    rows = assert_right_in_both_modes(engine, directory, 8)
    lengths = [(len(row.rollout.prompt_token_ids), len(conversation_ids(row.rollout))) for row in rows]
    assert any(whole <= LONGROPE_BORDER for _, whole in lengths)
    assert any(prompt < LONGROPE_BORDER < whole for prompt, whole in lengths)
    assert any(prompt > LONGROPE_BORDER for prompt, _ in lengths)
    assert_greedy(rows, PlainModel(directory))


@pytest.mark.parametrize("family", sorted(LONGROPE_FAMILIES))
def test_a_longer_text_in_the_call_changes_no_other(directory_of: Callable[[str], Path], family: str):
    engine = BuiltinEngine(settings_of(directory_of(family), poolings=("response_mean", "prompt_mean")))
    plain = PlainModel(directory_of(family))
    ids = [40 + (7 * place) % 150 for place in range(100)]
    lengths = (20, LONGROPE_BORDER, LONGROPE_BORDER + 1, 100)
    # They begin alike, so those that may share a pass share a prefix, too.
    texts = [TokenisedText(f"{length} tokens", tuple(ids[:length]), ((12, length),)) for length in lengths]
    # Of one conversation, a turn on each side: the first is what it would be if the second did not follow.
    texts.append(TokenisedText("two turns", tuple(ids), ((12, 30), (50, 55), (70, 90))))
    for text, captured in zip(texts, engine.capture(texts), strict=True):
        assert len(captured.vectors_LD) == len(captured.tokens_KTD) == len(text.responses)
        for (start, stop), vectors_LD in zip(text.responses, captured.vectors_LD, strict=True):
            states_LTD = plain.outputs(text.token_ids[:stop])
            for pooling, part in (("response_mean", slice(start, stop)), ("prompt_mean", slice(0, start))):
                got_LD = vectors_LD["resid_post", pooling]
                assert relative_errors(got_LD, states_LTD[:, part].mean(axis=1)).max() < TOLERANCE, (text.name, stop)


def test_dynamic_embeddings_are_fixed_in_all_texts_that_the_context_holds(directory_of: Callable[[str], Path]):
    engine = BuiltinEngine(settings_of(directory_of("llama_dynamic"), poolings=("response_mean",)))
    context = engine.loaded.max_context
    plain = PlainModel(directory_of("llama_dynamic"))
    texts = [TokenisedText(str(end), tuple(range(40, 40 + end)), ((5, end),)) for end in (10, context)]
    for text, captured in zip(texts, engine.capture(texts), strict=True):
        states_LTD = plain.outputs(text.token_ids)[:, 5:]
        got_LD = captured.vectors_LD[0]["resid_post", "response_mean"]
        assert relative_errors(got_LD, states_LTD.mean(axis=1)).max() < TOLERANCE
    with pytest.raises(UnitError) as caught:
        engine.capture([TokenisedText("longer", tuple(range(40, 41 + context)), ((5, context + 1),))])
    assert caught.value.code == "too_long"


@pytest.mark.parametrize("place", [(LoadedModel, "run_alone"), (PackedPass, "run")], ids=["alone", "together"])
def test_memory_that_is_exhausted_in_the_trial_says_nothing_about_the_model(
    directory_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, place: tuple[type, str]
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(*place, fail)
    with pytest.raises(TransientError) as caught:
        BuiltinEngine(settings_of(directory_of("llama")))
    assert caught.value.code == "machine_fault"
