"""Prompts without an answer through chat templates: the ids are those that would be answered, and end at the header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.conversation import Conversation, Message
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.chat.spans import ConversationRenderer, load_renderer, require_within_context
from persona_atlas.workers.chat.survey import TextSurvey

from conversations import conversation
from tiny_models import CHAT_TEMPLATE, save_tokenizer

Make = Callable[[str], ConversationRenderer]

# As Qwen 3 does: an empty block in the header, and what was thought in earlier turns is dropped.
THINKS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT_TEMPLATE
INSTRUCTS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} <|end|>{% endif %}{% endfor %}"
)
FORGETS = CHAT_TEMPLATE.replace("in messages %}", "in messages[-2:] %}")
FORGETS_ANSWERS = CHAT_TEMPLATE.replace("in messages %}", "in messages if message['role'] != 'assistant' %}")
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE


@pytest.fixture
def renderer_of(tmp_path: Path) -> Make:
    def make(template: str) -> ConversationRenderer:
        save_tokenizer(tmp_path, template)
        return load_renderer(tmp_path)

    return make


def prompt(*texts: str, system_prompt: str = "") -> Conversation:
    return replace(conversation(*texts, system_prompt=system_prompt), is_prompt=True)


def applied(tmp_path: Path, given: Conversation) -> list[int]:
    """The ids by transformers alone."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": message.role, "content": message.content} for message in given.chat()]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, THINKS, INSTRUCTS, TOOLS])
@pytest.mark.parametrize("texts", [("Who?",), ("Who?", "Nobody.", "Why?"), (" \u2620\n",), ("x", "x", "x")])
@pytest.mark.parametrize("system_prompt", ["", "Be brief."])
def test_the_ids_are_those_of_the_prompt_that_would_be_answered(
    renderer_of: Make, tmp_path: Path, template: str, texts: tuple[str, ...], system_prompt: str
):
    given = prompt(*texts, system_prompt=system_prompt)
    read = renderer_of(template).read(given)
    expected = applied(tmp_path, given)
    assert list(read.text.token_ids) == expected
    assert read.text.responses == ((len(expected), len(expected)),)
    assert read.contents == ("",)


def test_a_template_without_a_system_role_puts_it_before_the_user(renderer_of: Make, tmp_path: Path):
    renderer = renderer_of(NO_SYSTEM)
    text = renderer.render(prompt("Who?", system_prompt="Be brief."))
    assert list(text.token_ids) == applied(tmp_path, prompt("Be brief.\n\nWho?"))
    ((start, stop),) = renderer.user_spans().of_turns(prompt("Who?", system_prompt="Be brief."), [1])
    assert stop - start == len("Who?")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, THINKS, INSTRUCTS])
def test_the_user_message_is_located_in_the_prompt(renderer_of: Make, tmp_path: Path, template: str):
    from transformers import AutoTokenizer

    renderer = renderer_of(template)
    given = prompt("Who?", "Why? Nobody.", "Why?")
    ((start, stop),) = renderer.user_spans().of_turns(given, [3])
    ids = renderer.render(given).token_ids
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(ids[start:stop]) == "Why?"
    assert "Why?" not in tokenizer.decode(ids[stop:])


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        (CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n"), "<think>"),
        (CHAT_TEMPLATE.replace("assistant\n", "assistant\n<draft>\n"), "<draft>"),
        # It depends on the messages, so that no probe shows it.
        (
            CHAT_TEMPLATE.replace(
                "assistant\n", "assistant\n{% if 'Why' in messages[-1]['content'] %}[THINK]{% endif %}"
            ),
            "[THINK]",
        ),
    ],
)
def test_a_template_that_opens_reasoning_is_refused(renderer_of: Make, template: str, tag: str):
    renderer = renderer_of(template)
    with pytest.raises(InputError) as refused:
        renderer.read(prompt("Why?"))
    error = refused.value
    assert (error.code, error.field) == ("opens_reasoning", "model.source")
    assert f"inside of {tag}" in error.message
    assert "talks.jsonl, line 1" in error.message
    assert "model.chat_template" in (error.hint or "")


def test_tags_that_the_user_writes_or_that_every_turn_has_are_not_taken_for_it(renderer_of: Make):
    assert renderer_of(CHAT_TEMPLATE).read(prompt("What is <think>", "A tag: <think>", "<think>")).contents == ("",)
    everywhere = CHAT_TEMPLATE.replace("{{ message['content'] }}", "<draft>\n{{ message['content'] }}")
    everywhere = everywhere.replace("assistant\n{% endif", "assistant\n<draft>\n{% endif")
    assert renderer_of(everywhere).read(prompt("Who?")).contents == ("",)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (FORGETS, "leaves message 0 (user) out"),
        (FORGETS_ANSWERS, "leaves a message of the assistant out"),
        (CHAT_TEMPLATE + "{% if messages[1:] %}{{ raise_exception('one only') }}{% endif %}", "one only"),
    ],
)
def test_a_part_of_a_prompt_that_is_left_out_is_refused(renderer_of: Make, template: str, reason: str):
    renderer = renderer_of(template)
    with pytest.raises(InputError) as refused:
        renderer.read(prompt("Who?", "Nobody.", "Why?"))
    assert refused.value.code == "not_rendered"
    assert reason in refused.value.message
    assert "talks.jsonl, line 1" in refused.value.message


def test_tools_and_their_results_are_part_of_a_prompt(renderer_of: Make, tmp_path: Path):
    calls = '[{"function": {"name": "add", "arguments": {}}}]'
    template = TOOLS.replace(
        "{{ message['content'] }}",
        "{{ message['content'] }}{% if message['role'] == 'tool' %}!{% endif %}"
        "{% if message.tool_calls %}{{ message.tool_calls[0].function.name }}{% endif %}",
    )
    given = replace(
        prompt("Add."),
        messages=(Message("user", "Add."), Message("assistant", "", tool_calls=calls), Message("tool", "4")),
        tools='[{"name": "add"}]',
    )
    renderer = renderer_of(template)
    text = renderer.render(given)
    assert text.responses == ((len(text.token_ids),) * 2,)
    ((start, stop),) = renderer.user_spans().of_turns(given, [3])
    assert stop - start == len("Add.")
    with pytest.raises(InputError, match="leaves the tools out"):
        renderer_of(template.replace("{{ tools | tojson }}", "")).render(given)


def test_a_prompt_may_be_as_long_as_the_context(renderer_of: Make):
    text = renderer_of(CHAT_TEMPLATE).render(prompt("Who?"))
    require_within_context(text, len(text.token_ids))
    with pytest.raises(InputError, match=rf"has {len(text.token_ids)} tokens; the model's context"):
        require_within_context(text, len(text.token_ids) - 1)


def test_a_prompt_is_one_row_of_the_counts(renderer_of: Make):
    renderer = renderer_of(CHAT_TEMPLATE)
    survey = TextSurvey(renderer.renderer)
    for given in (
        prompt("What is <|end|>?", "It is <|end|>.", "So?"),
        prompt("Why?", "<think>Hm.</think>So.", "Why?"),
        replace(
            prompt("Why?"),
            messages=(Message("user", "W"), Message("assistant", "S", reasoning="R"), Message("user", "?")),
        ),
    ):
        survey.add_conversation(given, renderer.read(given))
    assert survey.counts == {"control_tokens": 1, "reasoning_left_out": 1}
