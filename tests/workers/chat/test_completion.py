"""Texts that are completed as they are: their token ids are those that the tokenizer alone gives any text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.dialogues.prefills import base_prefills
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.workers.chat.builtin_templates import COMPLETION, builtin_template
from persona_atlas.workers.chat.checks import require_closed_prompts, require_no_channel, turn_end
from persona_atlas.workers.chat.completion import CompletionRenderer, renderer_of
from persona_atlas.workers.chat.spans import load_renderer

from tiny_models import SPECIAL, save_tokenizer


def bytes_alone(directory: Path) -> Any:
    """A tokenizer of bytes that puts nothing before a text, as Qwen's."""
    from transformers import AutoTokenizer

    save_tokenizer(directory, None)
    return AutoTokenizer.from_pretrained(directory)


def pieces(directory: Path, scheme: str, single: str = "<|start|> $A") -> Any:
    """A tokenizer of characters that begins a text with a control token, and a word with a blank, as Llama 2's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    letters = sorted({letter for prefill in base_prefills() for letter in prefill.text} | set("▁<|>1abcdefghij "))
    vocabulary = {token: i for i, token in enumerate(["<unk>", *SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    ends = [(token, vocabulary[token]) for token in ("<|start|>", "<|end|>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    more = {"bos_token": "<|start|>", "eos_token": "<|end|>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize(
    "make",
    [bytes_alone, lambda path: pieces(path, "first"), lambda path: pieces(path, "always")],
    ids=["bytes", "first", "always"],
)
def test_ids_are_those_of_the_tokenizer_alone(make: Callable[[Path], Any], tmp_path: Path):
    tokenizer = make(tmp_path)
    renderer = load_renderer(tmp_path, COMPLETION).renderer
    assert isinstance(renderer, CompletionRenderer)
    for prefill in base_prefills():
        ids = renderer.render([ChatMessage("user", prefill.text)])
        assert ids == tokenizer(prefill.text)["input_ids"]
        assert ids[:1] == ([] if tokenizer.bos_token is None else [tokenizer.bos_token_id]) or make is bytes_alone
    require_closed_prompts(renderer)
    require_no_channel(renderer)
    assert turn_end(renderer) is None
    assert (renderer.has_system_role, renderer.inserted_system_text) == (False, False)


def test_a_text_that_is_to_go_on_does_not_end(tmp_path: Path):
    tokenizer = pieces(tmp_path, "first", "<|start|> $A <|end|>")
    ids = renderer_of(tokenizer, COMPLETION).render([ChatMessage("user", "My job is to")])
    assert tokenizer("My job is to")["input_ids"] == [*ids, tokenizer.eos_token_id]
    assert ids[0] == tokenizer.bos_token_id


def test_a_control_token_that_a_text_spells_is_ordinary_text(tmp_path: Path):
    tokenizer = bytes_alone(tmp_path)
    ids = renderer_of(tokenizer, COMPLETION).render([ChatMessage("user", "a <|end|> b")])
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a <|end|> b"


def test_the_plain_template_names_the_speakers_and_begins_as_every_text(tmp_path: Path):
    pieces(tmp_path, "first")
    template = builtin_template("builtin:plain", "model.chat_template")
    renderer = load_renderer(tmp_path, template).renderer
    chat = [ChatMessage("system", "Be."), ChatMessage("user", " Hi "), ChatMessage("assistant", "Ho")]
    text = renderer.text(renderer.for_template(chat), generate=False)
    assert text == "<|start|>Be.\n\nUser:\nHi\n\nAssistant:\nHo\n\n"
    assert renderer.text(renderer.for_template(chat[1:2]), generate=True) == "<|start|>User:\nHi\n\nAssistant:\n"
    assert (renderer.has_system_role, renderer.inserted_system_text) == (True, False)
    assert turn_end(renderer) is None
