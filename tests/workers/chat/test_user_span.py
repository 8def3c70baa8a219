"""The user's own words in a rendering: found by placeholder and offsets, refused where a template hides them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.chat.offsets import offsets_encoder
from persona_atlas.workers.chat.renderer import ChatRenderer
from persona_atlas.workers.chat.spans import load_renderer
from persona_atlas.workers.chat.user_span import UserSpans, require_user_spans

from conversations import conversation
from requests_of import chat
from tiny_models import CHAT_TEMPLATE, save_tokenizer

_TURNS = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
_GENERATE = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
STRIPS = _TURNS.replace("m['content']", "m['content'] | trim") + _GENERATE
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + _TURNS + _GENERATE
MERGES = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}[INST] {{ s if loop.first }}{{ m['content'] }} [/INST]{% endfor %}"
)
REPEATS = _TURNS + "{{ messages[-1]['content'] }}" + _GENERATE
COUNTS = _TURNS.replace("<|start|>", "<|start|>{{ m['content'] | length }}") + _GENERATE

Make = Callable[[str], tuple[UserSpans, Any]]


@pytest.fixture
def spans_of(tmp_path: Path) -> Make:
    from transformers import AutoTokenizer

    def make(template: str) -> tuple[UserSpans, Any]:
        save_tokenizer(tmp_path, template)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        return UserSpans(offsets_encoder(tokenizer), ChatRenderer(tokenizer)), tokenizer

    return make


def words(tokenizer: Any, spans: UserSpans, system_prompt: str, question: str) -> str:
    """What the tokens of the span spell."""
    return words_of(tokenizer, spans, chat(system_prompt, question))


def words_of(tokenizer: Any, spans: UserSpans, messages: Sequence[ChatMessage]) -> str:
    """The same of a chat of any length."""
    prompt_ids = ChatRenderer(tokenizer).render(messages)
    start, stop = spans.of_prompt(messages, prompt_ids)
    return tokenizer.decode(prompt_ids[start:stop], skip_special_tokens=False)


@pytest.mark.parametrize("system_prompt", ["", "Be a pirate.", "Why?", "Zq7user"])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NO_SYSTEM, MERGES], ids=["role", "no role", "merges"])
def test_the_span_holds_the_users_words_and_no_system_prompt_wherever_that_stands(
    spans_of: Make, template: str, system_prompt: str
):
    spans, tokenizer = spans_of(template)
    for question in ("Why?", "user", "Who are you?\n\nWhy?", "Zq7user"):
        assert words(tokenizer, spans, system_prompt, question) == question


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, NO_SYSTEM, MERGES, STRIPS], ids=["role", "no role", "merges", "strips"]
)
def test_a_later_turn_answers_the_users_last_message_though_the_words_were_said_before(spans_of: Make, template: str):
    spans, tokenizer = spans_of(template)
    talk = (*chat("Hi", "Hi"), ChatMessage("assistant", "Hi"), ChatMessage("user", "Hi"))
    assert words_of(tokenizer, spans, talk) == "Hi"
    renderer = ChatRenderer(tokenizer)
    _, stop = spans.of_prompt(talk)
    assert stop > len(renderer.render(talk[:2])), "the last one, after the first turn's reply"
    assert spans.of_prompt(talk[:2])[1] <= len(renderer.render(talk[:2]))


def test_a_prompt_without_a_message_of_the_user_is_refused(spans_of: Make):
    spans, _ = spans_of(CHAT_TEMPLATE)
    with pytest.raises(InputError, match="no message of the user"):
        spans.of_prompt([ChatMessage("system", "Be.")])


def test_a_message_that_the_template_strips_is_what_is_left_of_it(spans_of: Make):
    spans, tokenizer = spans_of(STRIPS)
    assert words(tokenizer, spans, "Be.", "  Why?\n") == "Why?"


@pytest.mark.parametrize(("template", "says"), [(REPEATS, "repeats it"), (COUNTS, "cannot be told apart")])
def test_a_template_that_hides_the_users_words_is_refused_by_name(spans_of: Make, template: str, says: str):
    spans, _ = spans_of(template)
    with pytest.raises(InputError, match=says) as caught:
        spans.of_prompt(chat("", "Why?"))
    assert (caught.value.code, caught.value.field) == ("no_user_span", "capture.poolings")
    assert "'Why?'" in caught.value.message


@pytest.mark.parametrize("question", ["", " \n"])
def test_a_message_without_content_has_no_mean(spans_of: Make, question: str):
    spans, _ = spans_of(STRIPS)
    with pytest.raises(InputError, match="has no content"):
        spans.of_prompt(chat("Be.", question))


def test_tokens_that_are_not_the_prompts_own_are_refused(spans_of: Make):
    spans, tokenizer = spans_of(CHAT_TEMPLATE)
    prompt_ids = ChatRenderer(tokenizer).render(chat("", "Why?"))
    with pytest.raises(InputError, match="other tokens"):
        spans.of_prompt(chat("", "Why?"), prompt_ids[:-1])


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NO_SYSTEM], ids=["role", "no role"])
def test_each_turn_has_the_last_message_of_the_user_before_it(spans_of: Make, tmp_path: Path, template: str):
    spans, tokenizer = spans_of(template)
    talk = conversation("Hi", "Hello", "Hi", "Hello again", system_prompt="Hi")
    text = load_renderer(tmp_path).render(talk)
    found = spans.of_turns(talk, [1, 3])
    assert [tokenizer.decode(text.token_ids[start:stop]) for start, stop in found] == ["Hi", "Hi"]
    assert found[0][1] < text.responses[0][0] < found[1][0] < found[1][1] < text.responses[1][0]


def test_a_turn_that_answers_nobody_is_refused_by_place(spans_of: Make):
    spans, _ = spans_of(CHAT_TEMPLATE)
    with pytest.raises(InputError, match=r"message 0 answers no message of the user \(talks.jsonl, line 7\)"):
        spans.of_turns(conversation("Hello", "Hi", "Hello", begins=1, index=6), [0, 2])


def test_every_prompt_and_every_question_of_a_job_is_tried(spans_of: Make):
    spans, _ = spans_of(STRIPS)
    address = RolloutAddress("role", "pirate", "pos", 0, 0, 0)
    fine = [RolloutRequest(address, chat(system, asked), 0) for system in ("", "Be.") for asked in ("Why?", "Who?")]
    require_user_spans(spans, fine)
    with pytest.raises(InputError, match="has no content"):
        require_user_spans(spans, [*fine, RolloutRequest(address, chat("Be.", "\n"), 0)])


@pytest.fixture(scope="module")
def real(smollm2_directory: Path) -> tuple[UserSpans, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
    return UserSpans(offsets_encoder(tokenizer), ChatRenderer(tokenizer)), tokenizer


@pytest.mark.model
@given(st.text(min_size=1, max_size=30), st.sampled_from(["", "Be a pirate."]))
@settings(max_examples=60, deadline=None)
def test_a_real_models_span_spells_what_was_asked(real: tuple[UserSpans, Any], question: str, system_prompt: str):
    spans, tokenizer = real
    if tokenizer.decode(tokenizer.encode(question, add_special_tokens=False)) == question:
        spelt = words(tokenizer, spans, system_prompt, question)
        # A token may hold the template's line break and the question's first space.
        assert spelt == question or (question[:1].isspace() and spelt == f"\n{question}")
