"""Interventions on a Hugging Face model: each row of a batch is edited as it would be alone, whatever is padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas import Ablate, AddVector, Cap, Direction, InputError, Intervention, intervene

from plain_forward import PlainModel, model_class, relative_errors
from tiny_families import D_MODEL, N_LAYERS, save_tiny_family

NEW = 5
PROMPTS = ([40, 41, 42], [50, 51, 52, 53, 54, 55], [60, 61, 62, 63])


def direction(seed: int) -> Direction:
    return Direction.of(np.random.default_rng(seed).standard_normal(D_MODEL))


STEERED = Intervention((AddVector(0, direction(1), 3.0), Cap.ceiling(2, direction(2), 0.0)))
ON_RESPONSE = Intervention((Cap(1, direction(3), 2.0, "response"), Ablate(0, direction(4), "response")))
OF_ROWS = (STEERED, None, ON_RESPONSE)


class Loaded:
    """A tiny model of a family, with a plain one beside it for each intervention."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoConfig

        self.directory = directory
        self.model: Any = model_class(AutoConfig.from_pretrained(directory)).from_pretrained(directory).eval()
        self.layers: Any = PlainModel(directory).layers

    def plain(self, intervention: Intervention | None) -> PlainModel:
        return PlainModel(self.directory, edits=intervention.edits if intervention else ())

    def continued(self, ids: Sequence[int], intervention: Intervention | None) -> list[int]:
        """The most likely continuation, each token from a plain pass over all before it."""
        plain, longer = self.plain(intervention), list(ids)
        for _ in range(NEW):
            longer.append(int(plain.logits(longer, len(ids)).argmax()))
        return longer[len(ids) :]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Loaded:
    return Loaded(save_tiny_family(tmp_path_factory.mktemp(request.param), request.param))


def padded(prompts: Sequence[Sequence[int]], *, left: bool) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    rows = [([0] * (longest - len(ids)), list(ids)) for ids in prompts]
    whole = [(pad + ids if left else ids + pad) for pad, ids in rows]
    mask = [([0] * len(pad) + [1] * len(ids) if left else [1] * len(ids) + [0] * len(pad)) for pad, ids in rows]
    return {"input_ids": torch.tensor(whole), "attention_mask": torch.tensor(mask)}


def generate(loaded: Loaded, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    inputs = padded(prompts, left=True)
    greedy = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options
    return loaded.model.generate(**inputs, **greedy)[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_every_row_of_a_padded_batch_continues_as_it_would_alone(loaded: Loaded, use_cache: bool):
    with intervene(loaded.model, OF_ROWS, prompt_length=6):
        said = generate(loaded, PROMPTS, use_cache=use_cache)
    assert said == [loaded.continued(ids, one) for ids, one in zip(PROMPTS, OF_ROWS, strict=True)]
    free = generate(loaded, PROMPTS, use_cache=use_cache)
    assert free == [loaded.continued(ids, None) for ids in PROMPTS]
    assert free[0] != said[0]


def test_rows_that_generate_makes_of_one_have_its_intervention(loaded: Loaded):
    with intervene(loaded.model, STEERED):
        alone = generate(loaded, PROMPTS[:1], num_beams=3, num_return_sequences=2)
    with intervene(loaded.model, [None, STEERED]):
        both = generate(loaded, [PROMPTS[2], PROMPTS[0]], num_beams=3, num_return_sequences=2)
    assert both[2:] == alone
    assert len(both) == 4


def test_a_plain_pass_over_padded_texts_is_edited_text_by_text(loaded: Loaded):
    texts = [[*range(40, 47)], [*range(50, 54)], [*range(60, 70)]]
    starts = [4, 2, 5]
    seen: list[torch.Tensor] = []
    with intervene(loaded.model, OF_ROWS, prompt_length=starts), torch.no_grad():
        layers = [module for name, module in loaded.model.named_modules() if name.split(".")[-1].isdigit()][:N_LAYERS]
        handles = [
            layer.register_forward_hook(
                lambda _module, _args, output: seen.append(output if torch.is_tensor(output) else output[0])
            )
            for layer in layers
        ]
        loaded.model(**padded(texts, left=False))
        for handle in handles:
            handle.remove()
    for row, (ids, start, one) in enumerate(zip(texts, starts, OF_ROWS, strict=True)):
        expected = loaded.plain(one).places(ids, start)["resid_post"]
        got = torch.stack([layer[row, : len(ids)] for layer in seen]).numpy()
        assert relative_errors(got.reshape(N_LAYERS, -1), expected.reshape(N_LAYERS, -1)).max() < 1e-5


def test_gradients_flow_through_an_edit(loaded: Loaded):
    embeddings = loaded.model.get_input_embeddings()(torch.tensor([PROMPTS[0]])).detach().requires_grad_()
    with intervene(loaded.model, Intervention((Ablate(N_LAYERS - 1, direction(4)),))):
        loaded.model(inputs_embeds=embeddings).logits.sum().backward()
    assert embeddings.grad is not None
    assert bool(torch.isfinite(embeddings.grad).all())


@pytest.mark.parametrize(
    ("intervention", "length", "code", "field"),
    [
        (ON_RESPONSE, None, "no_prompt_length", "prompt_length"),
        (Intervention((Cap(N_LAYERS, direction(1), 0.0),)), None, "bad_intervention", "intervention"),
        ((None, Intervention((Cap(0, Direction.of([1.0]), 0.0),))), None, "bad_intervention", "intervention"),
        ((STEERED, None), None, "bad_batch", "intervention"),
        ((), None, "bad_batch", "intervention"),
        (ON_RESPONSE, [3, 6], "bad_batch", "prompt_length"),
    ],
    ids=["no prompt length", "layer", "width", "rows", "none at all", "lengths"],
)
def test_what_does_not_fit_is_named_and_leaves_the_model_as_it_was(
    loaded: Loaded, intervention: Any, length: Any, code: str, field: str
):
    before = generate(loaded, PROMPTS)

    def run() -> None:
        with intervene(loaded.model, intervention, prompt_length=length):
            generate(loaded, PROMPTS)

    refused(run, code, field)
    assert generate(loaded, PROMPTS) == before


def refused(run: Callable[[], None], code: str, field: str) -> None:
    with pytest.raises(InputError) as caught:
        run()
    assert (caught.value.code, caught.value.field) == (code, field)


def test_a_model_without_positions_takes_no_edits_of_the_response():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=8, num_hidden_layers=2, vocab_size=16, state_size=4)
    with (
        pytest.raises(InputError, match="keeps no past_key_values") as caught,
        intervene(
            MambaForCausalLM(config),
            Intervention((Ablate(0, Direction.of([1.0] * 8), "response"),)),
            prompt_length=2,
        ),
    ):
        raise AssertionError
    assert caught.value.code == "no_positions"


def test_hidden_states_are_edited_whether_or_not_they_were_asked_for_before(loaded: Loaded):
    ids = torch.tensor([PROMPTS[1]])
    under = Intervention((AddVector(0, direction(1), 3.0),))
    expected = loaded.plain(under).places(PROMPTS[1])["resid_post"]
    for _ in range(2):
        with intervene(loaded.model, under), torch.no_grad():
            hidden = loaded.model(ids, output_hidden_states=True).hidden_states
        for layer in (0, 1):
            np.testing.assert_allclose(hidden[1 + layer][0].numpy(), expected[layer], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            free = loaded.model(ids, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(
            free[1][0].numpy(), loaded.plain(None).places(PROMPTS[1])["resid_post"][0], atol=1e-4
        )
