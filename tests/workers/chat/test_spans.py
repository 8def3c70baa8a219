"""Whole conversations through chat templates of every kind: the template's own ids, spans that hold the responses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.conversation import Conversation
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.chat.renderer import ChatRenderer
from persona_atlas.workers.chat.spans import ConversationRenderer, load_renderer, require_within_context

from conversations import conversation
from requests_of import chat
from tiny_models import CHAT_TEMPLATE, save_tokenizer

Make = Callable[[str], ConversationRenderer]

_TURNS = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
_GENERATE = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
STRIPS = _TURNS.replace("m['content']", "m['content'] | trim") + _GENERATE
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + _TURNS + _GENERATE
ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + _TURNS + _GENERATE
)
DATED = "Today is {{ strftime_now('%d %B %Y') }}. " + _TURNS + _GENERATE
# As Qwen 3 does: an empty block before the last response, none before earlier ones, and what was thought is dropped.
THINKS = (
    "{% for m in messages %}{% set c = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "<|start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n"
    "{{ m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m['content'] else '' }}"
    "\n</think>\n\n{% endif %}{{ c }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
INSTRUCTS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} <|end|>{% endif %}{% endfor %}"
)
FORGETS = "{% for m in messages[-2:] %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}" + _GENERATE
RHYMES = _TURNS + "{% if messages[2:] and messages[1]['content'] == messages[-1]['content'] %}again{% endif %}"
COUNTS = _TURNS.replace("<|end|>", "{{ messages[-1]['content'] | length if not loop.last }}<|end|>") + _GENERATE

# Not of private use: apply_chat_template marks control tokens with such characters, and drops them from texts.
texts = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=40) | st.sampled_from(
    ["", " ", "\n\n", " x ", "<|end|>", "Zq7response1.", "\u2028", "\U0001f600"]
)


@pytest.fixture
def renderer_of(tmp_path: Path) -> Make:
    def make(template: str) -> ConversationRenderer:
        save_tokenizer(tmp_path, template)
        return load_renderer(tmp_path)

    return make


def own_ids(renderer: ConversationRenderer, tokenizer: Any, talk: Conversation) -> list[int]:
    """The template's own rendering of the whole conversation; what texts spell is ordinary text."""
    messages = renderer.renderer.for_template(talk.chat())
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, sanitize_control_tokens=True)


def check(renderer: ConversationRenderer, tokenizer: Any, said: list[str], system_prompt: str) -> None:
    talk = conversation(*said, system_prompt=system_prompt)
    text = renderer.render(talk)
    assert list(text.token_ids) == own_ids(renderer, tokenizer, talk)
    responses = [message.content for message in talk.messages if message.role == "assistant"]
    spoken = [tokenizer.decode(text.token_ids[start:stop], skip_special_tokens=False) for start, stop in text.responses]
    assert len(spoken) == len(responses)
    edges = [0, *(edge for span in text.responses for edge in span)]
    assert edges == sorted(edges)
    for heard, response, (start, stop) in zip(spoken, responses, text.responses, strict=True):
        if tokenizer.decode(tokenizer.encode(response, add_special_tokens=False)) != response:
            continue  # A few rare characters have no token in some vocabularies, so that even the span may be empty.
        assert (stop == start) == (response == "")
        # A token may hold the template's last line break and the response's first space.
        assert heard == response or (response[:1].isspace() and heard == f"\n{response}")


@given(st.lists(texts, min_size=2, max_size=7), st.sampled_from(["", "Be a pirate."]))
@settings(max_examples=60, deadline=None)
def test_ids_are_the_templates_own_and_spans_hold_what_was_said(
    shared_tiny: tuple[ConversationRenderer, Any], said: list[str], system_prompt: str
):
    check(*shared_tiny, said, system_prompt)


@pytest.fixture(scope="module")
def shared_tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConversationRenderer, Any]:
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tiny")
    save_tokenizer(directory, CHAT_TEMPLATE)
    return load_renderer(directory), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def shared_smollm2(smollm2_directory: Path) -> tuple[ConversationRenderer, Any]:
    from transformers import AutoTokenizer

    return load_renderer(smollm2_directory), AutoTokenizer.from_pretrained(smollm2_directory)


@pytest.mark.model
@given(st.lists(texts, min_size=2, max_size=7), st.sampled_from(["", "Be a pirate."]))
@settings(max_examples=100, deadline=None)
def test_ids_of_a_real_model_are_the_templates_own(
    shared_smollm2: tuple[ConversationRenderer, Any], said: list[str], system_prompt: str
):
    check(*shared_smollm2, said, system_prompt)


@pytest.mark.model
def test_the_prompt_before_a_response_is_the_one_it_would_be_generated_from(
    shared_smollm2: tuple[ConversationRenderer, Any],
):
    renderer, _ = shared_smollm2
    text = renderer.render(conversation("Who are you?", "A pirate. Arr!", system_prompt="Be a pirate."))
    start, stop = text.responses[0]
    asked = chat("Be a pirate.", "Who are you?")
    prompt_ids, response_ids = renderer.answer(asked, "A pirate. Arr!")
    assert list(text.token_ids[:start]) == prompt_ids == renderer.renderer.render(asked)
    assert list(text.token_ids[start:stop]) == response_ids


def heard(renderer: ConversationRenderer, *said: str, **options: Any) -> tuple[str, list[str]]:
    """The whole rendering and the responses in it, as the byte tokenizer spells them."""
    text = renderer.render(conversation(*said, **options))
    decode = renderer._encoder.decode  # pyright: ignore[reportPrivateUsage]
    spoken = [decode(list(text.token_ids[start:stop]), skip_special_tokens=False) for start, stop in text.responses]
    return decode(list(text.token_ids), skip_special_tokens=False), spoken


def test_a_template_that_strips_is_followed(renderer_of: Make):
    whole, spoken = heard(renderer_of(STRIPS), "Hi", "  Hello\n", "So?", "\n\n", "And?", "x y ")
    assert spoken == ["Hello", "", "x y"]
    assert "  Hello" not in whole


def test_reasoning_of_earlier_turns_is_dropped_and_the_block_before_the_last_is_no_response(renderer_of: Make):
    renderer = renderer_of(THINKS)
    whole, spoken = heard(renderer, "Hi", "<think>hm</think>\n\nHello", "So?", "So.")
    assert spoken == ["Hello", "So."]
    assert "hm" not in whole
    assert whole.count("<think>") == 1


def test_reasoning_in_the_last_turn_is_refused_by_place(renderer_of: Make):
    with pytest.raises(InputError) as caught:
        renderer_of(THINKS).render(conversation("Hi", "<think>hm</think>\n\nHello", index=6))
    assert caught.value.field == "messages"
    assert "message 1 cannot be told apart; reasoning" in caught.value.message
    assert "talks.jsonl, line 7" in caught.value.message


def test_a_space_that_the_template_writes_is_no_response(renderer_of: Make):
    _, spoken = heard(renderer_of(INSTRUCTS), "Hi", "Hello", "So?", "So.")
    assert spoken == ["Hello", "So."]


def test_without_a_system_role_its_text_goes_before_the_first_question(renderer_of: Make):
    whole, spoken = heard(renderer_of(NO_SYSTEM), "Hi", "Hello", system_prompt="Be.")
    assert whole.startswith("<|start|>user\nBe.\n\nHi<|end|>")
    assert spoken == ["Hello"]
    with pytest.raises(InputError, match="needs a user's message"):
        renderer_of(NO_SYSTEM).render(conversation("Hello", "Hi", system_prompt="Be.", begins=1))


def test_the_date_is_pinned(renderer_of: Make):
    whole, _ = heard(renderer_of(DATED), "Hi", "Hello")
    assert whole.startswith("Today is 01 January 2026. ")


@pytest.mark.parametrize(
    ("template", "said", "says"),
    [
        (ALTERNATES, ("Hello",), "roles must alternate"),
        (FORGETS, ("Hi", "Hello", "So?", "So."), "leaves a message of the assistant out"),
        (COUNTS, ("Hi", "Hello", "So?", "So."), "message 3 cannot be told apart"),
        (RHYMES, ("Hi", "Hello", "So?", "Hello"), "one message depending on others"),
    ],
    ids=["refuses", "forgets", "rewrites", "compares"],
)
def test_a_template_that_cannot_be_followed_is_named(
    template: str, said: tuple[str, ...], says: str, renderer_of: Make
):
    with pytest.raises(InputError) as caught:
        renderer_of(template).render(conversation(*said, begins=len(said) % 2))
    assert (caught.value.code, caught.value.field) == ("not_rendered", "messages")
    assert says in caught.value.message
    assert "talks.jsonl, line 1" in caught.value.message
    assert caught.value.hint


def test_a_conversation_with_nothing_before_its_first_response_is_refused(renderer_of: Make):
    bare = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    with pytest.raises(InputError, match="puts nothing before it"):
        renderer_of(bare).render(conversation("Hello", begins=1))


def test_one_that_is_longer_than_the_models_context_is_refused(renderer_of: Make):
    text = renderer_of(CHAT_TEMPLATE).render(conversation("Hi", "Hello" * 30))
    require_within_context(text, text.responses[-1][1])
    with pytest.raises(InputError, match="the model's context is 100"):
        require_within_context(text, 100)


def test_a_tokenizer_that_puts_a_space_before_every_text_gives_the_same_ids(tmp_path: Path):
    """As those made by SentencePiece do, where texts that are tokenised apart have spaces that the whole has not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "▁abcdefghijklmnopqrstuvwxyzHW[]/INST."
    vocabulary = {token: place for place, token in enumerate(["<s>", "</s>", "<unk>", *letters, "▁H", "▁He"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "H"), ("▁H", "e")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace()
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
    )
    renderer = ConversationRenderer(fast, ChatRenderer(fast))
    talk = conversation("hi", "Hello", "so", "We do.")
    text = renderer.render(talk)
    assert list(text.token_ids) == own_ids(renderer, fast, talk)
    spoken = [fast.convert_ids_to_tokens(text.token_ids[start:stop]) for start, stop in text.responses]
    assert spoken == [["▁He", "l", "l", "o"], ["W", "e", "▁", "d", "o", "."]]
    assert fast.convert_ids_to_tokens(text.token_ids[0]) == "<s>"
    assert text.token_ids.count(0) == 1
