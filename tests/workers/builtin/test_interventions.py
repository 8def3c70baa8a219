"""Interventions: each edits the tokens of its own request at the output of a layer, whatever shares the pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.interventions import Ablate, AddVector, Cap, Direction, Intervention
from persona_atlas.jobs.work.rollouts import EditRecord, Rollout
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.editing.edited_pass import EditedPass, EditedStretch
from persona_atlas.workers.editing.interventions import Interventions
from persona_atlas.workers.engine import CapturedRollout, TokenisedText
from torch import nn

from plain_forward import ALL_POOLINGS, PlainModel, conversation_ids, pool, relative_errors
from requests_of import chat, engine_settings, generate, requests_of, texts_of
from tiny_families import D_MODEL, FAMILIES, N_LAYERS, save_tiny_family

TOLERANCE = 1e-4
NO_OP = Intervention()


def vector(seed: int) -> Direction:
    return Direction.of(np.random.default_rng(seed).standard_normal(D_MODEL))


def at(layer: int, seed: int, coefficient: float = 1.0) -> Intervention:
    return Intervention((AddVector(layer, vector(seed), coefficient),))


KINDS: tuple[Intervention | None, ...] = (
    None,
    at(1, 1),
    at(1, 2, -2.0),
    Intervention((AddVector(0, vector(3)), AddVector(2, vector(4), 0.5), AddVector(0, vector(5), -1.5))),
    NO_OP,
    Intervention((Cap(1, vector(6), 0.5), Cap.ceiling(2, vector(7), 0.25))),
    # Of its prompt it is the same as one of those above.
    Intervention(
        (AddVector(1, vector(1)), Cap(1, vector(6), 1.0, "response"), AddVector(2, vector(8), 2.0, "response"))
    ),
    Intervention((Ablate(0, vector(9), "response"), Ablate(2, vector(9)), Ablate(2, vector(10)))),
    Intervention((Cap(0, vector(11), 1.0, "response"),)),
)


def plain_of(directory: Path, intervention: Intervention | None) -> PlainModel:
    return PlainModel(directory, edits=intervention.edits if intervention else ())


def recorded(plain: PlainModel, intervention: Intervention | None, rollout: Rollout) -> tuple[EditRecord, ...] | None:
    """What the last run of a plain model did to a rollout, layer by layer."""
    if intervention is None or not intervention.edits:
        return None
    records: list[EditRecord] = []
    for layer, moved_T in sorted(plain.moved.items()):
        on_prompt = any(edit.layer == layer and edit.positions == "all" for edit in intervention.edits)
        prompt = len(rollout.prompt_token_ids)
        moved = moved_T[moved_T > 0]
        num_tokens = len(moved_T) if on_prompt else len(moved_T) - prompt
        records.append(EditRecord(layer, num_tokens, len(moved), float(moved.mean()) if len(moved) else 0.0))
    return tuple(records)


def assert_recorded(got: tuple[EditRecord, ...] | None, expected: tuple[EditRecord, ...] | None) -> None:
    if got is None or expected is None:
        assert got is expected
        return
    assert [(one.layer, one.num_tokens, one.num_changed) for one in got] == [
        (one.layer, one.num_tokens, one.num_changed) for one in expected
    ]
    corrections = [[one.mean_correction for one in records] for records in (got, expected)]
    np.testing.assert_allclose(*corrections, rtol=1e-4)


def mixed(num: int, kinds: Sequence[Intervention | None] = KINDS) -> list[RolloutRequest]:
    """Requests of which neighbours carry different interventions, under one long system prompt and under none."""
    asked = requests_of(num, system_prompt="You are a pirate. " * 3)
    return [dataclasses.replace(r, intervention=kinds[i % len(kinds)]) for i, r in enumerate(asked)]


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_family(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


@pytest.fixture(scope="module")
def engine(directory_of: Callable[[str], Path]) -> BuiltinEngine:
    settings = engine_settings(directory_of("llama"), layers=range(N_LAYERS), poolings=ALL_POOLINGS, token_layers=(1,))
    return BuiltinEngine(settings)


def reread(engine: BuiltinEngine, rows: Sequence[CapturedRollout]) -> list[CapturedRollout]:
    """The same conversations by a prefill pass, under the same interventions."""
    return [
        dataclasses.replace(
            row,
            rollout=dataclasses.replace(row.rollout, edits=text.edits[0]),
            vectors_LD=text.vectors_LD[0],
            tokens_KTD=text.tokens_KTD[0],
        )
        for row, text in zip(rows, engine.capture(texts_of(rows)), strict=True)
    ]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_both_modes_capture_and_record_what_a_plain_model_with_the_same_edits_shows(
    directory_of: Callable[[str], Path], family: str
):
    directory = directory_of(family)
    settings = engine_settings(
        directory,
        layers=range(N_LAYERS),
        hook_points=("resid_pre", "resid_mid", "resid_post", "mlp_out"),
        poolings=ALL_POOLINGS,
        batch_tokens=1000,
        token_layers=(0, 2),
    )
    engine = BuiltinEngine(settings)
    rows = generate(engine, mixed(18))
    assert [row.intervention for row in rows] == [request.intervention for request in mixed(18)]
    models = {kind: plain_of(directory, kind) for kind in KINDS}
    for row in [*rows, *reread(engine, rows)]:
        prompt = len(row.rollout.prompt_token_ids)
        states = models[row.intervention].places(conversation_ids(row.rollout), prompt)
        assert_recorded(row.rollout.edits, recorded(models[row.intervention], row.intervention, row.rollout))
        for (point, pooling), got_LD in row.vectors_LD.items():
            expected_LD = pool(states[point], row.rollout)[pooling]
            if row.rollout.has_vector or not pooling.startswith("response_"):
                assert relative_errors(got_LD, expected_LD).max() < TOLERANCE, (row.rollout.address, point, pooling)
        for (point, _), got_KTD in row.tokens_KTD.items():
            expected_KTD = states[point][[0, 2], len(row.rollout.prompt_token_ids) :]
            assert relative_errors(got_KTD, expected_KTD).max(initial=0) < TOLERANCE


def test_each_of_a_mixed_batch_says_and_shows_what_it_does_alone(engine: BuiltinEngine):
    requests = mixed(18)
    together = generate(engine, requests)
    said = set()
    for request, row in zip(requests, together, strict=True):
        (alone,) = generate(engine, [request])
        assert row.rollout == alone.rollout
        assert_recorded(row.rollout.edits, alone.rollout.edits)
        said.add(row.rollout.response_token_ids)
        for array, vector_LD in row.vectors_LD.items():
            np.testing.assert_allclose(vector_LD, alone.vectors_LD[array], rtol=1e-4, atol=1e-4)
    assert len(said) > 3


def test_a_response_may_end_before_its_edits_have_acted_on_any(engine: BuiltinEngine):
    requests = [dataclasses.replace(one, intervention=KINDS[-1]) for one in requests_of(3, system_prompt="")]
    first_ids = [row.rollout.response_token_ids[0] for row in generate(engine, requests)]
    # The first of the batch, and no other, ends with the token that it samples in the pass over all prompts.
    assert first_ids.count(first_ids[0]) == 1
    loaded = dataclasses.replace(engine.loaded, stop_ids=frozenset({first_ids[0]}))
    settings = engine_settings(Path(), layers=range(N_LAYERS), poolings=ALL_POOLINGS, token_layers=(1,))
    asked = iter(requests)
    rows = {
        row.rollout.address: row for row in engine.generation(settings, loaded=loaded).run(lambda: next(asked, None))
    }
    assert len(rows) == 3
    nothing = EditRecord(0, num_tokens=0, num_changed=0, mean_correction=0.0)
    assert rows[requests[0].address].rollout.edits == (nothing,)
    for row, text in zip(rows.values(), engine.capture(texts_of(list(rows.values()))), strict=True):
        assert_recorded(row.rollout.edits, text.edits[0])


def test_an_intervention_changes_what_is_said(engine: BuiltinEngine):
    plain, steered = (generate(engine, mixed(6, [kind])) for kind in (None, at(1, 1, 8.0)))
    pairs = zip(plain, steered, strict=True)
    assert all(one.rollout.response_token_ids != other.rollout.response_token_ids for one, other in pairs)


def test_a_no_op_changes_nothing_to_the_last_bit(engine: BuiltinEngine):
    plain, same = (generate(engine, mixed(6, [kind])) for kind in (None, NO_OP))
    read = zip(reread(engine, plain), reread(engine, same), strict=True)
    for one, other in [*zip(plain, same, strict=True), *read]:
        assert one.rollout == other.rollout
        for array, vector_LD in one.vectors_LD.items():
            np.testing.assert_array_equal(vector_LD, other.vectors_LD[array])


def test_what_is_captured_at_the_layer_is_the_plain_stream_and_the_vector(engine: BuiltinEngine):
    (row,) = generate(engine, mixed(1, [at(2, 7, 3.0)]))
    edited, plain = engine.capture(texts_of([row, dataclasses.replace(row, intervention=None)]))
    for pooling in ("response_mean", "prompt_mean", "user_mean", "assistant_start"):
        difference_LD = (
            edited.vectors_LD[0]["resid_post", pooling].astype(np.float64) - plain.vectors_LD[0]["resid_post", pooling]
        )
        np.testing.assert_array_equal(difference_LD[:2], 0)
        np.testing.assert_allclose(difference_LD[2], 3 * vector(7).numbers, rtol=1e-5, atol=1e-5)
        assert np.abs(difference_LD[3] - difference_LD[2]).max() > 1e-2


def count_tokens(engine: BuiltinEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a list grow by the tokens of each pass."""
    seen: list[int] = []
    forward = engine.model.forward

    def counting(*args: object, **options: torch.Tensor) -> object:
        seen.append(options["input_ids"].numel())
        return forward(*args, **options)

    monkeypatch.setattr(engine.model, "forward", counting)
    return seen


def test_a_prefix_is_shared_by_equal_interventions_alone_in_generation(
    directory_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    engine = BuiltinEngine(engine_settings(directory_of("llama"), layers=range(N_LAYERS), max_new_tokens=2))
    kinds = (None, at(1, 1), at(1, 2))
    # An equal intervention is the same one, wherever it was made; one that leaves prompts as they are is none to them.
    on_response = AddVector(0, vector(3), positions="response")
    again = (Intervention((on_response,)), at(1, 1), Intervention((on_response, *at(1, 2).edits)))
    requests = [
        dataclasses.replace(
            r, messages=chat("You are a pirate. " * 8, r.question), intervention=(*kinds, *again)[i % 6]
        )
        for i, r in enumerate(requests_of(12))
    ]
    prompt_tokens = sum(len(engine.renderer.render(r.messages)) for r in requests)
    seen = count_tokens(engine, monkeypatch)
    rows = generate(engine, requests)
    shared = len(engine.renderer.shared_prefix(requests[0].opening))
    fed = sum(row.rollout.num_content_tokens for row in rows)
    assert sum(seen) == prompt_tokens - (12 - 3) * shared + fed


def test_a_prefix_is_shared_by_equal_interventions_alone_in_reading(
    directory_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    directory = directory_of("llama")
    engine = BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS)))
    on_response = AddVector(0, vector(3), positions="response")
    kinds = (None, at(0, 1), at(0, 2), Intervention((on_response, *at(0, 1).edits)))
    texts = [
        TokenisedText(
            f"text {n}", (*range(40, 70), 150 + n, *range(50, 60)), ((35, 41),), intervention=kinds[n % len(kinds)]
        )
        for n in range(8)
    ]
    seen = count_tokens(engine, monkeypatch)
    captured = engine.capture(texts)
    # Of two, two and four that are alike, all but the first of each begin with 30 tokens that were read.
    assert sum(seen) == 8 * 41 - (1 + 1 + 3) * 30
    for text, got in zip(texts, captured, strict=True):
        states = plain_of(directory, text.intervention).places(text.token_ids, 35)
        expected_LD = states["resid_post"][:, :35].astype(np.float64).mean(axis=1)
        assert relative_errors(got.vectors_LD[0]["resid_post", "prompt_mean"], expected_LD).max() < TOLERANCE


def test_edits_of_the_response_act_on_each_turns_own_response(
    engine: BuiltinEngine, directory_of: Callable[[str], Path]
):
    """What a turn gets is then the same as where it was generated after the turns before it."""
    under = Intervention((AddVector(0, vector(1), 2.0, "response"), Cap(2, vector(2), 1.0, "response")))
    spans = ((12, 18), (25, 25), (30, 41))
    users = ((3, 5), (20, 22), (27, 29))
    text = TokenisedText("turns", tuple(range(40, 85)), spans, users, under)
    captured, _ = engine.capture([text, dataclasses.replace(text, intervention=None)])
    plain = plain_of(directory_of("llama"), under)
    for number, (start, stop) in enumerate(spans):
        states = plain.places(text.token_ids[:stop], start)["resid_post"].astype(np.float64)
        vectors = captured.vectors_LD[number]
        if stop > start:
            mean_LD = states[:, start:].mean(axis=1)
            assert relative_errors(vectors["resid_post", "response_mean"], mean_LD).max() < TOLERANCE
        assert relative_errors(vectors["resid_post", "prompt_mean"], states[:, :start].mean(axis=1)).max() < TOLERANCE
        edits = captured.edits[number]
        assert edits is not None
        assert [(one.layer, one.num_tokens) for one in edits] == [(0, stop - start), (2, stop - start)]
        assert [one.num_changed for one in edits] == [int((plain.moved[layer] > 0).sum()) for layer in (0, 2)]


def test_what_was_done_above_the_captured_layers_is_recorded_too(directory_of: Callable[[str], Path]):
    engine = BuiltinEngine(engine_settings(directory_of("llama"), layers=[0], max_new_tokens=3))
    under = KINDS[5]
    plain = plain_of(directory_of("llama"), under)
    rows = generate(engine, mixed(4, [under]))
    for row in [*rows, *reread(engine, rows)]:
        plain.places(conversation_ids(row.rollout), len(row.rollout.prompt_token_ids))
        assert_recorded(row.rollout.edits, recorded(plain, under, row.rollout))


def test_a_correction_beyond_all_numbers_is_an_error_also_above_the_captured_layers(
    directory_of: Callable[[str], Path],
):
    engine = BuiltinEngine(engine_settings(directory_of("llama"), layers=[0], max_new_tokens=3))
    (row,) = generate(engine, requests_of(1))
    under = Intervention((AddVector(2, vector(1), 1e30), AddVector(2, vector(2), 1e30)))
    with pytest.raises(UnitError, match=r"layer 2: .* is not finite"):
        engine.capture([dataclasses.replace(text, intervention=under) for text in texts_of([row])])
    with pytest.raises(UnitError, match="not finite"):
        generate(engine, [dataclasses.replace(one, intervention=under) for one in requests_of(1)])


def streams_of(engine: BuiltinEngine, run: Callable[[], object]) -> list[torch.Tensor]:
    """The stream after every decoder layer, edits included, read where the next layer takes it: (token, d_model)."""
    layers = engine.loaded.decoder_layers
    after = [*layers[1:], engine.model.model.norm]
    seen: list[list[torch.Tensor]] = [[] for _ in layers]
    handles = [
        module.register_forward_pre_hook(lambda _module, args, kept=kept: kept.append(args[0].flatten(0, -2)))
        for module, kept in zip(after, seen, strict=True)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(one) for one in seen]


def test_a_capped_generation_never_falls_below_the_floor(engine: BuiltinEngine):
    floors = [1.0, -0.5, 0.25, 2.0][:N_LAYERS]
    capped = Intervention(tuple(Cap(layer, vector(20 + layer), floor) for layer, floor in enumerate(floors)))
    free, held = (streams_of(engine, lambda kind=kind: generate(engine, mixed(6, [kind]))) for kind in (None, capped))
    for layer, floor in enumerate(floors):
        v_D = torch.tensor(vector(20 + layer).unit)
        rounding = 1e-6 * float(held[layer].norm(dim=1).max())
        assert float((held[layer] @ v_D).min()) >= floor - rounding
        # Without the cap many tokens are below; with it those above are left where they are.
        assert float((free[layer] @ v_D < floor - 0.1).float().mean()) > 0.1
        assert float((held[layer] @ v_D > floor + 0.1).float().mean()) > 0.01


@pytest.mark.model
def test_a_capped_generation_of_a_real_model_never_falls_below_the_floor(smollm2_directory: Path):
    engine = BuiltinEngine(engine_settings(smollm2_directory, layers=[29], max_new_tokens=4, temperature=0.0))
    layers = range(20, 28)
    axes = [Direction.of(np.random.default_rng(layer).standard_normal(engine.loaded.d_model)) for layer in layers]
    capped = Intervention(tuple(Cap(layer, axis, 5.0) for layer, axis in zip(layers, axes, strict=True)))
    rows: list[CapturedRollout] = []
    streams = streams_of(engine, lambda: rows.extend(generate(engine, mixed(2, [capped]))))
    for layer, axis in zip(layers, axes, strict=True):
        rounding = 1e-6 * float(streams[layer].norm(dim=1).max())
        assert float((streams[layer] @ torch.tensor(axis.unit)).min()) >= 5.0 - rounding
    for row in rows:
        assert row.rollout.edits is not None
        assert all(0 < one.num_changed <= one.num_tokens for one in row.rollout.edits)
        canary = engine.canary(row)
        assert canary is not None
        assert max(canary.relative_error_L) < TOLERANCE


def test_a_ceiling_is_a_floor_on_the_opposite_direction(engine: BuiltinEngine):
    ceiling = Intervention((Cap.ceiling(1, vector(20), 0.5),))
    held = streams_of(engine, lambda: generate(engine, mixed(4, [ceiling])))[1]
    assert float((held @ torch.tensor(vector(20).unit)).max()) <= 0.5 + 1e-6 * float(held.norm(dim=1).max())


def test_ablation_leaves_no_component(engine: BuiltinEngine):
    ablated = Intervention(tuple(Ablate(layer, vector(30)) for layer in range(N_LAYERS)))
    v_D = torch.tensor(vector(30).unit)
    for stream_TD in streams_of(engine, lambda: generate(engine, mixed(6, [ablated]))):
        share_T = (stream_TD @ v_D).abs() / stream_TD.norm(dim=1)
        assert float(share_T.max()) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_captured_may_be_from_before_the_edits_of_the_same_layer(
    directory_of: Callable[[str], Path], family: str
):
    settings = engine_settings(
        directory_of(family), layers=range(N_LAYERS), hook_points=("resid_pre", "resid_post"), max_new_tokens=8
    )
    capture = settings.capture.model_copy(update={"before_intervention": True})
    engine = BuiltinEngine(dataclasses.replace(settings, capture=capture))
    rows = generate(engine, mixed(9))
    models = {kind: plain_of(directory_of(family), kind) for kind in KINDS}
    for row in [*rows, *reread(engine, rows)]:
        plain = models[row.intervention]
        states = plain.places(conversation_ids(row.rollout), len(row.rollout.prompt_token_ids))
        for layer, before_TD in plain.before.items():
            states["resid_post"][layer] = before_TD.numpy()
        for (point, pooling), got_LD in row.vectors_LD.items():
            if row.rollout.has_vector or not pooling.startswith("response_"):
                assert relative_errors(got_LD, pool(states[point], row.rollout)[pooling]).max() < TOLERANCE
        canary = engine.canary(row)
        assert canary is None or max(canary.relative_error_L) < TOLERANCE
    row = next(row for row in rows if row.intervention == at(1, 2, -2.0) and row.rollout.has_vector)
    after = BuiltinEngine(settings).canary(row)
    assert after is not None
    assert after.relative_error_L[1] > engine.canary_limit


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_canary_honours_the_intervention_and_sees_when_it_is_not(
    directory_of: Callable[[str], Path], family: str, monkeypatch: pytest.MonkeyPatch
):
    settings = engine_settings(
        directory_of(family),
        layers=range(N_LAYERS),
        hook_points=("resid_pre", "resid_post"),
        poolings=ALL_POOLINGS,
        token_layers=(1,),
    )
    engine = BuiltinEngine(settings)
    steered = [row for row in generate(engine, mixed(18)) if row.rollout.has_vector and row.rollout.edits]
    for row in steered:
        canary = engine.canary(row)
        assert canary is not None
        assert max(canary.relative_error_L) < TOLERANCE
    row = next(row for row in steered if row.intervention == at(1, 1))
    for other in (None, at(1, 2), at(2, 1)):
        wrong = engine.canary(dataclasses.replace(row, intervention=other))
        assert wrong is not None
        assert wrong.relative_error_L[1] > engine.canary_limit

    @contextmanager
    def ignored(_interventions: Interventions, stretches: Sequence[EditedStretch]) -> Iterator[EditedPass]:
        yield _interventions.planned(stretches)

    # A plain pass that forgets the edits: nothing but the canary would notice.
    monkeypatch.setattr(Interventions, "applied", ignored)
    wrong = engine.canary(row)
    assert wrong is not None
    assert wrong.relative_error_L[1] > engine.canary_limit


def test_in_bfloat16_the_edit_is_float32_arithmetic(directory_of: Callable[[str], Path]):
    layer = nn.Identity()
    interventions = Interventions([layer], D_MODEL, "cpu")
    resid = torch.randn(1, 5, D_MODEL, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    small = Intervention((AddVector(0, vector(1), 1e-3),) * 200)
    applied = interventions.ready(small)
    assert applied is not None
    with interventions.applied(applied.stretches(1, 0, 2, 5)):
        edited = layer(resid)
    exact = resid.double() + 0.2 * torch.tensor(vector(1).numbers, dtype=torch.float64)
    assert edited.dtype == torch.bfloat16
    torch.testing.assert_close(edited[:, 1:3].double(), exact[:, 1:3], rtol=2**-8, atol=1e-3)
    assert torch.equal(edited[:, [0, 3, 4]], resid[:, [0, 3, 4]])
    assert torch.equal(layer(resid), resid)


@pytest.mark.parametrize(
    ("intervention", "says"),
    [
        (at(N_LAYERS, 1), rf"edits layer {N_LAYERS}; the model has layers 0 to {N_LAYERS - 1}"),
        (at(-1, 1), "edits layer -1"),
        (
            Intervention((AddVector(1, Direction.of([1.0] * 31)),)),
            f"31 numbers at layer 1; the model's d_model is {D_MODEL}",
        ),
        (Intervention((AddVector(1, Direction.of([np.nan] * D_MODEL)),)), "not finite"),
        (Intervention((AddVector(1, vector(1)), AddVector(1, vector(1), np.inf))), "edit 1 .* not finite"),
    ],
    ids=["layer beyond", "layer below", "width", "vector", "coefficient"],
)
def test_one_that_does_not_fit_the_model_is_refused_by_name_when_the_others_have_ended(
    engine: BuiltinEngine, intervention: Intervention, says: str
):
    fine, wrong = mixed(2, [at(1, 1), intervention])
    to_ask = iter([fine, wrong])
    rollouts = engine.generate(lambda: next(to_ask, None))
    row = next(rollouts)
    assert row.rollout.address == fine.address
    with pytest.raises(UnitError, match=says) as caught:
        next(rollouts)
    assert caught.value.code == "bad_intervention"
    assert str(wrong.address) in caught.value.message
    with pytest.raises(UnitError, match=says) as caught:
        engine.capture(texts_of([dataclasses.replace(row, intervention=intervention)]))
    assert str(fine.address) in caught.value.message
