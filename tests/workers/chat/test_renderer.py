"""Prompts through chat templates of every kind that is about: with, without and with an own system prompt, dated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.workers.chat.renderer import PINNED_DATE, ChatRenderer

from requests_of import chat
from tiny_models import CHAT_TEMPLATE, save_tokenizer

_TURNS = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
_GENERATE = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
RAISES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + _TURNS + _GENERATE
)
DROPS = _TURNS.replace("%}<", "%}{% if m['role'] != 'system' %}<", 1).replace("{% endfor", "{% endif %}{% endfor")
DROPS += _GENERATE
INSERTS = (
    "{% if messages[0]['role'] != 'system' %}<|start|>system\nYou are Nobody.<|end|>\n{% endif %}" + _TURNS + _GENERATE
)
THINKS = _TURNS + _GENERATE + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
DATED = "{% if date_string is defined %}{{ date_string }}{% else %}{{ strftime_now('%c') }}{% endif %}." + _TURNS
MERGES = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}[INST] {{ s if loop.first }}{{ m['content'] }} [/INST]{% endfor %}"
)


@pytest.fixture
def tokenizer_with(tmp_path: Path):
    from transformers import AutoTokenizer

    def make(template: str | None) -> Any:
        save_tokenizer(tmp_path, template)
        return AutoTokenizer.from_pretrained(tmp_path)

    return make


def text_of(tokenizer: Any, system_prompt: str, question: str) -> str:
    return tokenizer.decode(ChatRenderer(tokenizer).render(chat(system_prompt, question)), skip_special_tokens=False)


def test_a_system_prompt_takes_the_system_role_where_there_is_one(tokenizer_with):
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    renderer = ChatRenderer(tokenizer)
    assert renderer.has_system_role
    assert not renderer.inserted_system_text
    assert text_of(tokenizer, "Be a pirate.", "Who are you?") == (
        "<|start|>system\nBe a pirate.<|end|>\n<|start|>user\nWho are you?<|end|>\n<|start|>assistant\n"
    )


def test_without_a_system_prompt_there_is_no_system_turn(tokenizer_with):
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    assert text_of(tokenizer, "", "Who are you?") == "<|start|>user\nWho are you?<|end|>\n<|start|>assistant\n"


@pytest.mark.parametrize("template", [RAISES, DROPS], ids=["raises", "drops it silently"])
def test_without_a_system_role_its_text_goes_before_the_question(tokenizer_with, template: str):
    tokenizer = tokenizer_with(template)
    renderer = ChatRenderer(tokenizer)
    assert not renderer.has_system_role
    assert not renderer.inserted_system_text
    assert text_of(tokenizer, "Be a pirate.", "Who are you?") == (
        "<|start|>user\nBe a pirate.\n\nWho are you?<|end|>\n<|start|>assistant\n"
    )
    assert text_of(tokenizer, "", "Who?") == "<|start|>user\nWho?<|end|>\n<|start|>assistant\n"


def test_a_template_that_merges_the_system_prompt_itself_is_left_to_do_so(tokenizer_with):
    tokenizer = tokenizer_with(MERGES)
    renderer = ChatRenderer(tokenizer)
    assert renderer.has_system_role
    assert not renderer.inserted_system_text
    assert text_of(tokenizer, "Be a pirate.", "Who?") == "[INST] Be a pirate.\n\nWho? [/INST]"


def test_a_template_with_a_default_of_its_own_uses_it_only_where_ours_is_empty(tokenizer_with):
    tokenizer = tokenizer_with(INSERTS)
    renderer = ChatRenderer(tokenizer)
    assert renderer.has_system_role
    assert renderer.inserted_system_text
    assert "Nobody" in text_of(tokenizer, "", "Who?")
    ours = text_of(tokenizer, "Be a pirate.", "Who?")
    assert "Nobody" not in ours
    assert ours.count("<|start|>system") == 1


def test_reasoning_is_switched_off_where_a_template_can(tokenizer_with):
    tokenizer = tokenizer_with(THINKS)
    message = [{"role": "user", "content": "Why?"}]
    assert "<think>" in tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert "<think>" not in text_of(tokenizer, "Be brief.", "Why?")


def test_the_date_is_pinned(tokenizer_with):
    assert text_of(tokenizer_with(DATED), "", "When?").startswith(f"{PINNED_DATE}.<|start|>user")


@pytest.mark.parametrize("template", [None, ""])
def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer_with, template: str | None):
    with pytest.raises(InputError) as caught:
        ChatRenderer(tokenizer_with(template))
    assert caught.value.field == "model.source"
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize("template", ["{{ raise_exception('never') }}", "{% for m in messages %}"])
def test_a_template_that_cannot_render_a_question_is_refused(tokenizer_with, template: str):
    with pytest.raises(InputError) as caught:
        ChatRenderer(tokenizer_with(template))
    assert caught.value.field == "model.source"
    assert caught.value.code == "bad_chat_template"


def test_ids_are_those_of_apply_chat_template(tokenizer_with):
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    for system_prompt in ("", "Sei ein Pirat. \u2620 {braces} <|end|>"):
        messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
        messages.append({"role": "user", "content": "  Why?\n"})
        direct = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
        )
        assert ChatRenderer(tokenizer).render(chat(system_prompt, "  Why?\n")) == direct


@pytest.mark.model
def test_a_real_templates_ids_are_those_of_apply_chat_template(smollm2_directory: Path):
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2_directory)
    renderer = ChatRenderer(tokenizer)
    assert renderer.has_system_role
    assert renderer.inserted_system_text
    messages = [{"role": "system", "content": "Be a pirate."}, {"role": "user", "content": "Who are you?"}]
    direct = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert renderer.render(chat("Be a pirate.", "Who are you?")) == direct


def test_the_record_tells_templates_apart(tokenizer_with):
    with_role = ChatRenderer(tokenizer_with(CHAT_TEMPLATE)).describe()
    without = ChatRenderer(tokenizer_with(RAISES)).describe()
    assert with_role["chat_template_sha256"] != without["chat_template_sha256"]
    assert (with_role["has_system_role"], without["has_system_role"]) == (True, False)
    assert with_role["pinned_date"] == PINNED_DATE


def test_of_several_templates_the_one_for_plain_conversations_is_used(tokenizer_with):
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    alone = ChatRenderer(tokenizer).render(chat("Be kind.", "Who are you?"))
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "TOOLS" + CHAT_TEMPLATE}
    assert ChatRenderer(tokenizer).render(chat("Be kind.", "Who are you?")) == alone
    tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE, "rag": CHAT_TEMPLATE}
    with pytest.raises(InputError, match="default"):
        ChatRenderer(tokenizer)


@pytest.mark.parametrize("in_template", [True, False], ids=["in the template", "not in the template"])
def test_the_beginning_of_sequence_stands_once(tokenizer_with, in_template: bool):
    from tokenizers import processors

    tokenizer = tokenizer_with("{{ bos_token }}" + CHAT_TEMPLATE if in_template else CHAT_TEMPLATE)
    tokenizer.bos_token = "<|pad|>"
    begin = tokenizer.bos_token_id
    # As Llama's and Gemma's do, this tokenizer puts it before every text it is given.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", begin)]
    )
    assert tokenizer("Why?")["input_ids"].count(begin) == 1
    for system_prompt in ("", "Be a pirate."):
        ids = ChatRenderer(tokenizer).render(chat(system_prompt, "Why?"))
        # A template says all of what begins a conversation; one that leaves it out is taken at its word.
        assert ids.count(begin) == (1 if in_template else 0)
        assert not in_template or ids[0] == begin


def test_a_shared_beginning_is_what_every_conversation_under_a_system_prompt_begins_with(tokenizer_with):
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    renderer = ChatRenderer(tokenizer)
    for system_prompt in ("", "Be a pirate."):
        shared = renderer.shared_prefix(chat(system_prompt, "")[:-1])
        assert tokenizer.decode(shared).endswith("user\n")
        for question in ("Who are you?", "(another way?)", "Zq7"):
            assert renderer.render(chat(system_prompt, question))[: len(shared)] == shared


TALK = (
    ChatMessage("system", "Be a pirate."),
    ChatMessage("user", "Hi"),
    ChatMessage("assistant", "Arr!"),
    ChatMessage("user", "So?"),
)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, RAISES], ids=["with a system role", "without"])
def test_a_chat_of_several_turns_is_rendered_whole(tokenizer_with, template: str):
    tokenizer = tokenizer_with(template)
    text = tokenizer.decode(ChatRenderer(tokenizer).render(TALK), skip_special_tokens=False)
    opening = "<|start|>system\nBe a pirate.<|end|>\n<|start|>user\nHi" if template == CHAT_TEMPLATE else (
        "<|start|>user\nBe a pirate.\n\nHi"
    )  # fmt: skip
    assert text == (
        f"{opening}<|end|>\n<|start|>assistant\nArr!<|end|>\n<|start|>user\nSo?<|end|>\n<|start|>assistant\n"
    )


def test_without_a_system_role_every_system_message_goes_before_the_next_of_the_user(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(RAISES))
    later = (*TALK, ChatMessage("assistant", "Aye."), *chat("Be a poet.", "And?"))
    contents = [message["content"] for message in renderer.for_template(later)]
    assert contents == ["Be a pirate.\n\nHi", "Arr!", "So?", "Aye.", "Be a poet.\n\nAnd?"]
    for messages in (TALK[:1], (TALK[0], *TALK[2:])):
        with pytest.raises(ValueError, match="needs a user's message"):
            renderer.for_template(messages)


def test_a_shared_prefix_may_hold_turns(tokenizer_with):
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    renderer = ChatRenderer(tokenizer)
    shared = renderer.shared_prefix(TALK[:3])
    assert tokenizer.decode(shared).endswith("user\n")
    assert renderer.render(TALK)[: len(shared)] == shared
    opening = renderer.shared_prefix(TALK[:1])
    assert len(opening) < len(shared)
    assert renderer.render(TALK)[: len(opening)] == opening
