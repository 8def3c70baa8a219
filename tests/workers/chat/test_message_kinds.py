"""Messages of every kind that people bring, through templates that have a branch for them and through those without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.conversation import Conversation, Message
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.chat.spans import ConversationRenderer, load_renderer
from persona_atlas.workers.chat.survey import TextSurvey

from tiny_models import CHAT_TEMPLATE, save_tokenizer

CALLS = json.dumps([{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}])
TOOLS = json.dumps([{"type": "function", "function": {"name": "add"}}])
GENERATE = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
AGENT = (
    "{% if tools %}<|start|>system\nTools: {{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ 'user\n<result>' if m.role == 'tool' else m.role + '\n' }}"
    "{% if m.content %}{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}"
    "{% if m.content or not loop.first %}{{ '\n' }}{% endif %}"
    "<call>{{ c.function.name }}{{ c.function.arguments.a }}</call>{% endfor %}<|end|>\n{% endfor %}" + GENERATE
)
ONLY_PLAIN = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role ' + m.role) }}{% endif %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System must be first') }}{% endif %}"
    "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}" + GENERATE
)
FIRST_SYSTEM_ONLY = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n"
    "{% endif %}{% endfor %}" + GENERATE
)


def thinks(name: str) -> str:
    """As Qwen 3: reasoning only of what follows the last message of the user, from a field or a tag in the content."""
    return (
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ m." + name + " or '' }}\n</think>\n\n"
        "{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
    )


@pytest.fixture
def renderer_of(tmp_path: Path):
    def make(template: str) -> ConversationRenderer:
        save_tokenizer(tmp_path, template)
        return load_renderer(tmp_path)

    return make


def talk(*messages: Message, system_prompt: str = "", tools: str | None = None) -> Conversation:
    place = "talks.jsonl, line 7"
    return Conversation("conversation", "talks", "pos", 0, 6, 0, 6, system_prompt, messages, "{}", place, tools)


def said(renderer: ConversationRenderer, given: Conversation) -> tuple[str, list[str]]:
    """The whole rendering, and the text of each span."""
    text = renderer.render(given)
    decode: Any = renderer._encoder.decode  # pyright: ignore[reportPrivateUsage]
    whole = decode(list(text.token_ids), skip_special_tokens=False)
    spans = [decode(list(text.token_ids[start:stop]), skip_special_tokens=False) for start, stop in text.responses]
    return whole, spans


ASKED, ANSWERED = Message("user", "Is 91 a prime?"), Message("assistant", "No.")
LATE = Message("system", "Be.")
THOUGHT = Message("assistant", "No.", reasoning="Seven goes into it.")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_handed_over_under_the_name_that_the_template_reads(renderer_of, name: str):
    renderer = renderer_of(thinks(name))
    assert renderer.renderer.reasoning_field is not None
    again = replace(THOUGHT, content="Yes.", reasoning="Nothing up to nine.")
    whole, spans = said(renderer, talk(ASKED, THOUGHT, Message("user", "And 97?"), again))
    assert "<think>\nNothing up to nine.\n</think>\n\nYes.<|end|>" in whole
    assert "Seven goes into it" not in whole, "as the template does with earlier turns"
    assert spans == ["No.", "Yes."], "reasoning is part of no response"
    survey = TextSurvey(renderer.renderer)
    survey.add_conversation(talk(ASKED, THOUGHT), renderer.read(talk(ASKED, THOUGHT)))
    assert survey.counts == {}


def test_reasoning_that_the_template_has_no_place_for_is_counted(renderer_of):
    renderer = renderer_of(CHAT_TEMPLATE)
    assert renderer.renderer.reasoning_field is None
    given = talk(ASKED, Message("assistant", "No."), ASKED, THOUGHT, ASKED, Message("assistant", "No."))
    survey = TextSurvey(renderer.renderer)
    survey.add_conversation(given, renderer.read(given))
    assert survey.counts == {"reasoning_left_out": 2}, "the row itself and the one after it"
    assert survey.lines()[0].startswith("2 rows: reasoning in a field of its own")


def test_a_response_that_the_template_shortens_is_counted_and_read_as_it_is_written(renderer_of):
    drops = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1] | trim")
    renderer = renderer_of(drops)
    given = talk(ASKED, Message("assistant", "I count.\n</think>\n\nSeven."), ASKED, Message("assistant", " Seven. "))
    rendered = renderer.read(given)
    assert rendered.contents == ("Seven.", "Seven.")
    survey = TextSurvey(renderer.renderer)
    survey.add_conversation(given, rendered)
    assert survey.counts == {"responses_shortened": 1}


def test_reasoning_among_the_content_is_counted_where_a_template_keeps_it(renderer_of):
    renderer = renderer_of(CHAT_TEMPLATE)
    given = talk(ASKED, Message("assistant", "<think>Hm.</think>No."), ASKED, Message("assistant", "Use <think>."))
    survey = TextSurvey(renderer.renderer)
    survey.add_conversation(given, renderer.read(given))
    assert survey.counts == {"reasoning_in_responses": 1}


def test_a_response_inside_of_reasoning_that_the_template_opened_is_refused(renderer_of):
    opens = CHAT_TEMPLATE.replace(
        "{{ message['content'] }}", "{% if message.role == 'assistant' %}<think>\n{% endif %}{{ message['content'] }}"
    )
    with pytest.raises(InputError, match=r"opens <think> before message 1 .* line 7"):
        renderer_of(opens).render(talk(Message("user", "What is </think>?"), Message("assistant", "A tag.")))
    # What a message says of such tags is no reasoning.
    whole, spans = said(renderer_of(CHAT_TEMPLATE), talk(Message("user", "What is <think>"), Message("assistant", "A")))
    assert (spans, "<think>" in whole) == (["A"], True)


TOOL_TALK = (
    Message("user", "Add."),
    Message("assistant", "", tool_calls=CALLS),
    Message("tool", "2", name="add", tool_call_id="c1"),
    Message("assistant", "It is 2."),
    Message("user", "Again, and say so."),
    Message("assistant", "I add.", tool_calls=CALLS),
    Message("tool", "2", name="add", tool_call_id="c1"),
    Message("assistant", "Still 2."),
)


def test_tool_calls_and_results_go_through_the_templates_own_branch(renderer_of):
    renderer = renderer_of(AGENT)
    whole, spans = said(renderer, talk(*TOOL_TALK, tools=TOOLS))
    assert whole.startswith('<|start|>system\nTools: [{"type": "function", "function": {"name": "add"}}]<|end|>\n')
    assert "<|start|>assistant\n<call>add1</call><|end|>\n<|start|>user\n<result>2<|end|>\n" in whole
    assert "<|start|>assistant\nI add.\n<call>add1</call><|end|>\n" in whole
    assert spans == ["", "It is 2.", "I add.", "Still 2."]
    text = renderer.render(talk(*TOOL_TALK, tools=TOOLS))
    start, stop = text.responses[0]
    assert start == stop
    # The prompt of a response without content ends where its turn begins.
    decode: Any = renderer._encoder.decode
    assert decode(list(text.token_ids[:start]), skip_special_tokens=False).endswith("Add.<|end|>\n<|start|>assistant\n")
    (first, *_, last) = renderer.user_spans().of_turns(talk(*TOOL_TALK, tools=TOOLS), [1, 7])
    assert [decode(list(text.token_ids[a:b])) for a, b in (first, last)] == ["Add.", "Again, and say so."]


@pytest.mark.parametrize(
    ("template", "messages", "tools", "says"),
    [
        (CHAT_TEMPLATE, TOOL_TALK, None, "no branch for messages of the role tool, as message 2"),
        (CHAT_TEMPLATE, TOOL_TALK[:2], None, "leaves the tool calls of message 1 (assistant) out"),
        (CHAT_TEMPLATE, (ASKED, ANSWERED), TOOLS, "leaves the tools out"),
        (ONLY_PLAIN, (ASKED, LATE, ANSWERED), None, "message 1 (system): System"),
        (FIRST_SYSTEM_ONLY, (ASKED, LATE, ANSWERED), None, "leaves message 1 (system) out"),
        (AGENT.replace("m.content %}{{ m.content }}", "m.content and m.role != 'tool' %}{{ m.content }}"), TOOL_TALK,
         TOOLS, "leaves message 2 (tool) out"),
        ("{{ messages[0].n + 1 if messages[1:] }}" + CHAT_TEMPLATE, (ASKED, ANSWERED), None, "no attribute 'n'"),
        ("{{ messages[1].content + 1 if messages[1:] }}" + CHAT_TEMPLATE, (ASKED, ANSWERED), None,
         "message 1 (assistant): TypeError"),
    ],
)  # fmt: skip
def test_what_a_template_has_no_place_for_is_refused_by_line_and_message(
    renderer_of, template: str, messages: tuple[Message, ...], tools: str | None, says: str
):
    with pytest.raises(InputError) as caught:
        renderer_of(template).render(talk(*messages, tools=tools))
    assert says in caught.value.message
    assert "talks.jsonl, line 7" in caught.value.message
    assert (caught.value.code, caught.value.field) == ("not_rendered", "messages")


def test_a_developers_message_is_a_system_message_unless_the_template_knows_the_role(renderer_of):
    given = talk(Message("developer", "Be brief."), ASKED, Message("assistant", "No."))
    whole, _ = said(renderer_of(ONLY_PLAIN), given)
    assert whole.startswith("<|start|>system\nBe brief.<|end|>\n<|start|>user\n")
    knows = CHAT_TEMPLATE.replace(
        "{{ message['role'] }}", "{{ 'dev' if message['role'] == 'developer' else message['role'] }}"
    )
    whole, spans = said(renderer_of(knows), given)
    assert whole.startswith("<|start|>dev\nBe brief.<|end|>\n")
    assert spans == ["No."]


def test_two_systems_and_one_in_the_middle(renderer_of):
    messages = (Message("system", "Be brief."), ASKED, Message("system", "Be kind."), Message("assistant", "No."))
    whole, spans = said(renderer_of(CHAT_TEMPLATE), talk(*messages, system_prompt="Be a pirate."))
    assert whole.count("<|start|>system\n") == 3
    assert spans == ["No."]
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT_TEMPLATE
    whole, _ = said(renderer_of(no_system), talk(*messages[:2], messages[3], system_prompt="Be a pirate."))
    assert whole.startswith("<|start|>user\nBe a pirate.\n\nBe brief.\n\nIs 91 a prime?<|end|>")
    with pytest.raises(InputError, match="needs a user's message"):
        renderer_of(no_system).render(talk(*messages, system_prompt="Be a pirate."))
