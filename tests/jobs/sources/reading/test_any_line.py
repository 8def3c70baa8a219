"""Any file is either read or refused by file and line: no shape of JSON, and no bytes, lead to another error."""

from __future__ import annotations

import gzip
import json
import string
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.conversation import Conversation
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sources.reading.read_conversations import read_conversations

MESSAGE_KEYS = ["role", "content", "from", "value", "text", "type", "reasoning", "thinking", "name", "tool_calls"]
ENTRY_KEYS = ["conversation", "conversations", "tools", "label", "prompt_index", "question_index", "system_prompt"]
OTHER_LAYOUTS = ["chosen", "rejected", "instruction", "input", "output", "history", "prompt", "completion", "mapping"]

ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool", "human", "gpt", "pos", "neg", "default"])
ODD_TEXTS = st.sampled_from(["", "0", "\ud800", '[{"role": "user", "content": "\ud83d"}]', "[1", "{}", "[" * 9000])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ROLES | ODD_TEXTS | st.text(max_size=4)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(MESSAGE_KEYS + ENTRY_KEYS), inner),
    max_leaves=20,
)
CONTENTS = st.just("Hello.") | VALUES
MESSAGES = st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}, optional=dict.fromkeys(MESSAGE_KEYS[2:], VALUES))
LISTS = st.lists(MESSAGES, min_size=1, max_size=4)
ENTRIES = (
    VALUES
    | LISTS
    | st.fixed_dictionaries({"messages": LISTS}, optional=dict.fromkeys(ENTRY_KEYS, VALUES))
    | st.fixed_dictionaries({}, optional=dict.fromkeys(ENTRY_KEYS + OTHER_LAYOUTS, VALUES))
)
NAMES = st.sampled_from(["talks.jsonl", "talks.json", "default.jsonl"])
OF_FILES = ("no_conversations", "not_utf8", "not_text", "unreadable_file")


def require_sense(name: str, data: bytes, *, skip_invalid: bool, prompts_only: bool = False) -> InputError | None:
    """Read a file, and check what comes of it; return the refusal, or None if it was read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            found = read_conversations(str(path), skip_invalid=skip_invalid, prompts_only=prompts_only).conversations
        except InputError as error:
            refused = error
        else:
            require_conversations(found)
            return None
    assert refused.file == str(path)
    assert refused.hint
    # The place of the only value of a JSON document is its file.
    assert ", line " in refused.message or name.endswith(".json") or refused.code in OF_FILES
    assert json.dumps(refused.as_dict())
    return refused


def require_conversations(found: tuple[Conversation, ...]) -> None:
    assert found
    assert len({one.conversation_index for one in found}) == len(found)
    for one in found:
        turns = list(one.turn_indices())
        assert len(turns) == one.num_turns > 0
        # All of it can be encoded, and shown to a template.
        assert json.dumps([message.more() for message in one.chat()])
        texts = [text or "" for message in one.chat() for text in (message.content, message.reasoning, message.name)]
        assert isinstance("".join(texts).encode(), bytes)
        assert all(json.loads(one.extra_of(turn)) is not None for turn in turns)
        assert [turn for turn, _ in one.prompts()] == turns
        assert all(len(chat) >= turn for turn, chat in one.prompts())


@settings(max_examples=150, deadline=None)
@given(NAMES, st.lists(ENTRIES, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_any_json_is_read_or_refused(name: str, entries: list[Any], skip_invalid: bool, prompts_only: bool):
    data = "".join(json.dumps(e) + "\n" for e in entries).encode()
    require_sense(name, data, skip_invalid=skip_invalid, prompts_only=prompts_only)


@settings(max_examples=100, deadline=None)
@given(
    NAMES,
    st.binary(max_size=60) | st.text(string.printable, max_size=60).map(str.encode),
    st.sampled_from([bytes, gzip.compress]),
    st.booleans(),
)
def test_any_bytes_are_read_or_refused(name: str, data: bytes, pack: Any, skip_invalid: bool):
    require_sense(name, pack(data), skip_invalid=skip_invalid)


def test_what_json_refuses_to_parse_is_refused_by_its_line():
    talk = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    deep = "[" * 100_000
    for line in ("9" * 5000, deep, '{"a":' * 100_000, json.dumps({"messages": deep}), "\x00\x00\x00\x00"):
        for name in ("talks.jsonl", "talks.json"):
            refused = require_sense(name, f"{talk}\n{line}\n".encode(), skip_invalid=False)
            assert refused is not None, line[:20]
            assert "line 2" in refused.message
            assert require_sense(name, f"{line}\n".encode(), skip_invalid=True) is not None, line[:20]
