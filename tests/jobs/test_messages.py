"""Messages of every role, what a template gets besides role and content, and how turns are counted."""

import json

import pytest
from persona_atlas.jobs.conversation import Conversation, Message
from persona_atlas.jobs.messages import ChatMessage


@pytest.mark.parametrize(
    ("given", "handed_over"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("not JSON", "not JSON"),
        ("[1]", "[1]"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
@pytest.mark.parametrize("is_nested", [True, False])
def test_arguments_of_tool_calls_become_objects_where_they_are_the_text_of_one(
    given: object, handed_over: object, is_nested: bool
):
    call = {"name": "add", "arguments": given}
    calls = [{"id": "c1", "type": "function", "function": call} if is_nested else call]
    (out,) = ChatMessage("assistant", "", tool_calls=json.dumps(calls)).more()["tool_calls"]
    assert (out["function"] if is_nested else out)["arguments"] == handed_over


def test_only_fields_that_are_set_are_handed_over():
    assert ChatMessage("user", "Hi").more() == {}
    assert ChatMessage("tool", "3", name="add", tool_call_id="c1").more() == {"name": "add", "tool_call_id": "c1"}


def test_messages_can_be_keys():
    assert len({ChatMessage("assistant", "", tool_calls="[]"), ChatMessage("assistant", "", tool_calls="[]")}) == 1


def test_turns_are_counted_without_system_and_developer_messages():
    messages = (
        Message("developer", "Be brief."),
        Message("user", "Add 1 and 2."),
        Message("assistant", "", '{"n": 1}', tool_calls="[]"),
        Message("tool", "3", tool_call_id="c1"),
        Message("system", "Be kind."),
        Message("assistant", "It is 3.", '{"n": 2}', reasoning="The tool says 3."),
    )
    talk = Conversation("conversation", "talks", "pos", 0, 0, 0, 0, "Be.", messages, "{}", "talks.jsonl, line 1")
    assert list(talk.turn_indices()) == [1, 3]
    prompts = dict(talk.prompts())
    assert [message.role for message in prompts[1]] == ["system", "developer", "user"]
    assert prompts[3] == talk.chat()[:-1]
    assert talk.chat()[-1] == ChatMessage("assistant", "It is 3.", reasoning="The tool says 3.")
    assert json.loads(talk.extra_of(3)) == {"message": {"n": 2}}
