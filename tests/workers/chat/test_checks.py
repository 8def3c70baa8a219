"""Templates that open reasoning by themselves, the token that ends a turn, and dates that a server cannot pin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.workers.chat.checks import (
    left_channel,
    left_open,
    require_closed_prompts,
    require_no_channel,
    require_pinned_on_server,
    stop_token_ids,
    turn_end,
)
from persona_atlas.workers.chat.reasoning import open_tag, reasons_in_text
from persona_atlas.workers.chat.renderer import ChatRenderer
from tokenizers import AddedToken

from tiny_models import CHAT_TEMPLATE, END_ID, save_tokenizer

OPEN = [
    "<think>\n", "<think>", "<think>\n\n</think><think>\n", "[THINK]", "<|START_THINKING|>", "<|begin_of_thought|>\n",
    "<seed:think>", "\u25c1think\u25b7", "<thought>\n", "<reasoning>", "<|thinking_start|>", "<longcat_think>\n",
    "<|channel|>analysis<|message|>", "<|channel>thought\n", "<unused94>thought\n", "<think>\nOkay, ", "<Thinking>",
    "<scratchpad>\n",
]  # fmt: skip
CLOSED = [
    "", "<think>\n\n</think>\n\n", "[THINK][/THINK]", "<|START_THINKING|><|END_THINKING|>", "</think>\n",
    "<|begin_of_thought|><|end_of_thought|>", "\u25c1think\u25b7\u25c1/think\u25b7", "<seed:think></seed:think>",
    "<|channel>thought\n<channel|>", "<think>nothing</think>", "<no_think>", "<nothink>", "I think so: ",
    "<|channel|>final<|message|>",
]  # fmt: skip


@pytest.fixture
def renderer_of(tmp_path: Path):
    def make(template: str, *added: AddedToken) -> ChatRenderer:
        from transformers import AutoTokenizer

        save_tokenizer(tmp_path, template)
        tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
        tokenizer.add_tokens(list(added))
        return ChatRenderer(tokenizer)

    return make


def opening_with(text: str) -> str:
    """A template whose prompts end with a text, whatever ``enable_thinking`` says."""
    return CHAT_TEMPLATE.replace("assistant\n", "assistant\n" + text)


@pytest.mark.parametrize("text", OPEN)
@pytest.mark.parametrize("special", [True, False])
def test_a_template_that_opens_reasoning_itself_is_refused(renderer_of, text: str, special: bool):
    added = AddedToken(text.strip().split(">")[0] + ">", special=special)
    renderer = renderer_of(opening_with(text), *([added] if text.startswith("<") else []))
    assert left_open(renderer) is not None
    with pytest.raises(InputError, match="responses would be reasoning") as caught:
        require_closed_prompts(renderer)
    assert caught.value.code == "opens_reasoning"
    assert "model.chat_template" in (caught.value.hint or "")


@pytest.mark.parametrize("text", CLOSED)
def test_a_template_that_closes_it_is_not(renderer_of, text: str):
    renderer = renderer_of(opening_with(text))
    assert left_open(renderer) is None
    require_closed_prompts(renderer, [(), (ChatMessage("system", "Think in <think> tags."),)])


def _harmony(prompt_end: str) -> str:
    """A template in the manner of gpt-oss: messages in channels, and a prompt that ends with ``prompt_end``."""
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>"
        "{{ m.content }}<|end|>{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + prompt_end + "{% endif %}"
    )


def test_a_template_that_leaves_the_channel_to_the_model_is_refused_with_what_closes_it(renderer_of):
    renderer = renderer_of(_harmony("<|start|>assistant"))
    assert left_open(renderer) is None
    assert left_channel(renderer) == "<|channel|>final"
    with pytest.raises(InputError, match="would begin with reasoning") as caught:
        require_no_channel(renderer)
    assert (caught.value.code, caught.value.field) == ("opens_reasoning", "model.source")
    assert "ends a prompt with <|channel|>final" in str(caught.value.hint)


def test_a_template_that_writes_the_channel_itself_is_not(renderer_of):
    renderer = renderer_of(_harmony("<|start|>assistant<|channel|>final<|message|>"))
    assert left_channel(renderer) is None
    require_no_channel(renderer)
    require_no_channel(renderer_of(CHAT_TEMPLATE))


def test_another_tag_that_only_the_prompt_has_is_refused_too(renderer_of):
    assert left_open(renderer_of(opening_with("<draft>\n"))) == "<draft>"
    # Here it is part of every turn of the assistant.
    everywhere = CHAT_TEMPLATE.replace("{{ message['content'] }}", "<draft>\n{{ message['content'] }}")
    assert left_open(renderer_of(everywhere.replace("assistant\n", "assistant\n<draft>\n"))) is None


def test_a_prompt_that_ignores_the_flag_for_generation_is_seen(renderer_of):
    template = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]<think>\n{% endfor %}"
    assert left_open(renderer_of(template)) == "<think>"


def test_a_system_prompt_that_switches_reasoning_on_is_named(renderer_of):
    switched = CHAT_TEMPLATE.replace(
        "assistant\n{%", "assistant\n{% if '/think' in messages[0]['content'] %}<think>\n{% endif %}{%"
    )
    renderer = renderer_of(switched)
    require_closed_prompts(renderer, [(), (ChatMessage("system", "Be kind."),)])
    with pytest.raises(InputError, match=r"under the system prompt 'Be kind\. /think'"):
        require_closed_prompts(renderer, [(), (ChatMessage("system", "Be kind. /think"),)])


def test_reasoning_among_the_content_of_a_response_is_seen():
    for text in OPEN[:4]:
        assert open_tag(text) is not None
        assert reasons_in_text(text + "Hm")
    assert reasons_in_text("I count.\n</think>\n\nSeven.")
    assert reasons_in_text("  <think>\n</think>Seven.")
    assert not reasons_in_text("Use the <think> tag.")
    assert not reasons_in_text("Seven.")


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("<|end|>\n", "<|end|>"),
        (" <|end|>", "<|end|>"),
        ("\n\n### ", None),
        ("", None),
        ("<|over|><|end|>", "<|over|>"),
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_the_token_that_ends_a_turn_is_found_by_rendering(renderer_of, end: str, expected: str | None, special: bool):
    renderer = renderer_of(CHAT_TEMPLATE.replace("<|end|>\n", end), AddedToken("<|over|>", special=special))
    assert turn_end(renderer) == expected


def test_a_response_ends_at_every_id_that_settings_name_and_at_the_templates_own(renderer_of):
    class Settings:
        def __init__(self, eos_token_id: int | list[int] | None) -> None:
            self.eos_token_id = eos_token_id

    renderer = renderer_of(CHAT_TEMPLATE)
    assert stop_token_ids(renderer, Settings([7, 9]), Settings(11), Settings(None), object()) == {END_ID, 7, 9, 11}
    assert stop_token_ids(renderer_of(CHAT_TEMPLATE.replace("<|end|>", "###")), Settings(7)) == {7}


@pytest.mark.parametrize(
    ("asks", "is_pinned"),
    [
        ("{{ strftime_now('%Y') }}", False),
        ("{% if messages[0]['role'] == 'system' %}{{ strftime_now('%Y') }}{% endif %}", False),
        ("{{ date_string if date_string is defined else strftime_now('%Y') }}", True),
        ("", True),
    ],
)
def test_a_date_that_no_request_can_pin_is_refused_with_a_server(renderer_of, asks: str, is_pinned: bool):
    renderer = renderer_of(asks + CHAT_TEMPLATE)
    if is_pinned:
        require_pinned_on_server(renderer)
        return
    with pytest.raises(InputError, match="today's date") as caught:
        require_pinned_on_server(renderer)
    assert caught.value.code == "clock_in_template"
