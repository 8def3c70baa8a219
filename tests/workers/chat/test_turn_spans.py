"""Turns in a rendering: contents, reasoning, tool calls and the user's words, each where the template writes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from persona_atlas.jobs.conversation import Conversation, Message
from persona_atlas.workers.chat.spans import load_renderer
from persona_atlas.workers.chat.turn_spans import LocatedTurn, LocatedTurns, TurnLocator, left_out_notes

from tiny_models import CHAT_TEMPLATE, save_tokenizer

CALLS = json.dumps([{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}])
TOOLS = json.dumps([{"type": "function", "function": {"name": "add"}}])
AGENT = (
    "{% if tools %}<|start|>system\nTools: {{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ 'user\n<result>' if m.role == 'tool' else m.role + '\n' }}"
    "{% if m.reasoning_content and not loop.first %}<think>{{ m.reasoning_content | trim }}</think>{% endif %}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments.a }}"
    "</call>\n{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TALK = (
    Message("user", "Add."),
    Message("assistant", "", tool_calls=CALLS),
    Message("tool", "2", name="add", tool_call_id="c1"),
    Message("assistant", "It is 2.", reasoning=" One and one. "),
    Message("system", "Be brief."),
    Message("user", "Again, and say so."),
    Message("assistant", "I add.", reasoning="Once more.", tool_calls=CALLS),
    Message("tool", "2", name="add", tool_call_id="c1"),
    Message("assistant", "Still 2."),
)


def talk(*messages: Message, tools: str | None = TOOLS) -> Conversation:
    return Conversation("conversation", "talks", "pos", 0, 0, 0, 0, "", messages, "{}", "talks.jsonl, line 1", tools)


def locator(folder: Path, template: str) -> TurnLocator:
    save_tokenizer(folder, template)
    return TurnLocator(load_renderer(folder))


def words(found: LocatedTurns, folder: Path) -> list[tuple[int, str, str]]:
    """Of every turn its place and role, and the text of its tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [(turn.turn_index, turn.role, tokenizer.decode(found.token_ids[slice(*turn.span)])) for turn in found.turns]


def test_every_part_of_every_message_has_its_own_tokens(tmp_path: Path):
    turns = locator(tmp_path, AGENT)
    given = talk(*TALK)
    content = turns.locate(given)
    assert words(content, tmp_path) == [
        (1, "assistant", ""),
        (3, "assistant", "It is 2."),
        (5, "assistant", "I add."),
        (7, "assistant", "Still 2."),
    ]
    reasoning = turns.locate(given, "reasoning")
    assert [text for _, _, text in words(reasoning, tmp_path)] == ["", "One and one.", "Once more.", ""]
    whole = turns.locate(given, "all")
    assert [text for _, _, text in words(whole, tmp_path)] == [
        "<call>add1</call>\n",
        "One and one.</think>It is 2.",
        "Once more.</think>I add.<call>add1</call>\n",
        "Still 2.",
    ]
    for found in (content, reasoning, whole):
        assert [turn.text for turn in found.turns] == [text for _, _, text in words(found, tmp_path)]
        assert found.token_ids == content.token_ids
        assert not found.left_out


def test_the_users_turns_are_located_beside_those_of_the_assistant(tmp_path: Path):
    found = locator(tmp_path, AGENT).locate(talk(*TALK), roles=("user", "assistant"))
    assert [one[:2] for one in words(found, tmp_path)] == [
        (0, "user"),
        (1, "assistant"),
        (3, "assistant"),
        (4, "user"),
        (5, "assistant"),
        (7, "assistant"),
    ]
    users = locator(tmp_path, AGENT).locate(talk(*TALK), roles=("user",))
    assert words(users, tmp_path) == [(0, "user", "Add."), (4, "user", "Again, and say so.")]


def test_a_template_without_a_system_role_shifts_nothing(tmp_path: Path):
    no_system = CHAT_TEMPLATE.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no') }}{% endif %}",
    )
    given = replace(talk(*TALK[4:6], Message("assistant", "Fine."), tools=None), system_prompt="Be.")
    found = locator(tmp_path, no_system).locate(given, roles=("user", "assistant"))
    assert words(found, tmp_path) == [(0, "user", "Again, and say so."), (1, "assistant", "Fine.")]


def test_what_the_template_does_not_write_is_said(tmp_path: Path):
    given = talk(Message("user", "2?"), Message("assistant", "2.", reasoning="Two."), tools=None)
    found = locator(tmp_path, CHAT_TEMPLATE).locate(given, "reasoning")
    assert (found.turns, found.left_out) == ((LocatedTurn(1, "assistant", "", (0, 0)),), {"reasoning": 1})
    (note,) = left_out_notes(found.left_out)
    assert note.startswith("1 message: the chat template writes no reasoning there")
    strict = AGENT.replace(
        "'user\n<result>' if m.role == 'tool'",
        "'user\n<result>' if m.role == 'tool' and messages[loop.index0 - 1].tool_calls else raise_exception('which?') "
        "if m.role == 'tool'",
    )
    found = locator(tmp_path, strict).locate(talk(*TALK), "all")
    assert found.left_out == {"tool calls": 2}
    assert [turn.text for turn in found.turns][1:] == [
        "One and one.</think>It is 2.",
        "Once more.</think>I add.",
        "Still 2.",
    ]


def test_tokens_of_a_character_are_its_last_ones_text(tmp_path: Path):
    from transformers import AutoTokenizer

    turns = locator(tmp_path, CHAT_TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = turns.locate(talk(Message("user", "?"), Message("assistant", "né!"), tools=None))
    # A token of this tokenizer is a byte.
    assert found.token_texts(found.turns[0], tokenizer.decode) == ("n", "", "é", "!")


@pytest.mark.parametrize("part", ["content", "reasoning", "all"])
def test_a_forged_mark_in_a_message_moves_nothing(tmp_path: Path, part: str):
    messages = (Message("user", "Zq7mark"), Message("assistant", "Zq7markq", reasoning="Zq7mark"))
    found = locator(tmp_path, AGENT).locate(talk(*messages, tools=None), part)  # pyright: ignore[reportArgumentType]
    expected = {"content": "Zq7markq", "reasoning": "Zq7mark", "all": "Zq7mark</think>Zq7markq"}
    assert [text for _, _, text in words(found, tmp_path)] == [expected[part]]
