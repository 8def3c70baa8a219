"""Sentence embeddings: pooled as the model's own files say, whatever shares a batch; what is not known is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.embedding.embedder import Embedder
from persona_atlas.workers.embedding.embedder_files import find_embedder

from tiny_embedder import WIDTH, save_tiny_embedder

TEXTS = ["short", "a text of more words", "", "ab" * 40]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_embedder(tmp_path_factory.mktemp("embedder") / "tiny")


def by_hand(directory: Path, text: str, pooling: str, limit: int = 24) -> np.ndarray:
    """Embed one text alone, without padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    ids = torch.tensor([tokenizer(text)["input_ids"][:limit]])
    with torch.inference_mode():
        states_TE = model(input_ids=ids).last_hidden_state[0]
    pooled = {"mean": states_TE.mean(0), "cls": states_TE[0], "max": states_TE.amax(0)}
    return pooled[pooling].numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_texts_are_pooled_as_the_files_say_whatever_shares_their_batch(tmp_path: Path, pooling: str):
    directory = save_tiny_embedder(tmp_path / "tiny", pooling=pooling, normalised=False)
    texts = [TEXTS[0], TEXTS[1], TEXTS[3]]
    found = Embedder(find_embedder(str(directory))).embed(texts)
    assert found.values_NE.shape == (3, WIDTH)
    assert (found.num_cut, found.max_tokens) == (1, 24)
    for value_E, text in zip(found.values_NE, texts, strict=True):
        np.testing.assert_allclose(value_E, by_hand(directory, text, pooling), atol=1e-5)


def test_a_normalised_model_gives_vectors_of_length_one(tiny: Path):
    values_NE = Embedder(find_embedder(str(tiny))).embed(["one", "two words", " one "]).values_NE
    np.testing.assert_allclose(np.linalg.norm(values_NE, axis=1), 1, atol=1e-6)
    direction_E = by_hand(tiny, "one", "mean")
    np.testing.assert_allclose(values_NE[0], direction_E / np.linalg.norm(direction_E), atol=1e-5)
    np.testing.assert_allclose(values_NE[2], values_NE[0], atol=1e-6)


def test_many_texts_come_back_in_their_sequence(tiny: Path):
    embedder, texts = Embedder(find_embedder(str(tiny))), ["x" * (place % 13 + 1) for place in range(70)]
    shown: list[tuple[int, int]] = []
    values_NE = embedder.embed(texts, lambda done, whole: shown.append((done, whole))).values_NE
    np.testing.assert_allclose(values_NE[5], embedder.embed([texts[5]]).values_NE[0], atol=1e-5)
    np.testing.assert_allclose(values_NE[5], values_NE[18], atol=1e-5)
    assert shown[-1] == (70, 70)
    assert embedder.embed([]).values_NE.shape == (0, 0)


def test_a_default_prompt_and_lower_case_are_the_models_own(tmp_path: Path):
    directory = save_tiny_embedder(tmp_path / "tiny", limits={"max_seq_length": 50, "do_lower_case": True})
    about = {"prompts": {"query": "ask: ", "document": ""}, "default_prompt_name": "query"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(about))
    files = find_embedder(str(directory))
    assert (files.prompt, files.lower_case, files.max_tokens) == ("ask: ", True, 50)
    prompted_E = Embedder(files).embed(["HELLO"]).values_NE[0]
    direction_E = by_hand(directory, "ask: hello", "mean", 50)
    np.testing.assert_allclose(prompted_E, direction_E / np.linalg.norm(direction_E), atol=1e-5)


def test_pooling_is_read_in_the_newer_form_too(tiny: Path, tmp_path: Path):
    directory = save_tiny_embedder(tmp_path / "tiny")
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert find_embedder(str(directory)).pooling == "cls"


def test_what_is_not_understood_is_refused_by_name(tmp_path: Path):
    def refused(source: str) -> InputError:
        with pytest.raises(InputError) as told:
            find_embedder(source)
        assert told.value.field == "--embedder"
        return told.value

    directory = save_tiny_embedder(tmp_path / "tiny")
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": ["mean", "max"]}))
    assert refused(str(directory)).code == "unknown_pooling"
    (directory / "1_Pooling" / "config.json").write_text("{")
    assert refused(str(directory)).code == "bad_file"
    (directory / "1_Pooling" / "config.json").write_text("[1]")
    assert refused(str(directory)).code == "bad_file"
    modules = json.loads((directory / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (directory / "modules.json").write_text(json.dumps(modules))
    assert "Dense" in refused(str(directory)).message
    for damaged in ({"0": "Transformer"}, ["Transformer", "Pooling"]):
        (directory / "modules.json").write_text(json.dumps(damaged))
        assert refused(str(directory)).code == "bad_file"
    (directory / "modules.json").unlink()
    assert refused(str(directory)).code == "no_embedder"
    assert refused("package://no_such_package_anywhere/model").code == "no_package"
    assert refused("package://pytest/model").code == "no_embedder"


def test_a_model_inside_an_installed_package_is_found(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "packed_embedder"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it needs something else')")
    (package / "model").symlink_to(tiny)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_embedder("package://packed_embedder/model").directory.samefile(tiny)
