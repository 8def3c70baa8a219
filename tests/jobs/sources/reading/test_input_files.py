"""Files of conversations as they lie on disk: encodings, compression, several lines a value, folders, equal names."""

from __future__ import annotations

import gzip
import json
import os
import socket
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.conversation import Conversation
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sources.reading.read_conversations import read_conversations

TALK = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]}
LINE = json.dumps(TALK)


def read(path: Path) -> tuple[Conversation, ...]:
    return read_conversations(str(path)).conversations


def refusal(path: Path, *, skip_invalid: bool = False) -> InputError:
    with pytest.raises(InputError) as caught:
        read_conversations(str(path), skip_invalid=skip_invalid)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.jsonl.gz", "a.JSONL"])
@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (f"{LINE}\n{LINE}\n", [1, 2]),
        (f"{LINE}\r\n\r\n{LINE}", [1, 3]),
        (f"{LINE}\r{LINE}\r", None),
        (f"\ufeff{LINE}\n{LINE}\n", [1, 2]),
        (f"\n\n{json.dumps(TALK, indent=1)}\n\n{json.dumps(TALK, indent=1)}", None),
        (f"{LINE}{LINE}", None),
        (json.dumps([TALK, TALK]), None),
        (json.dumps([TALK, TALK], indent=2), None),
        (f"[\n{LINE},\n{LINE}\n]\n", None),
        (json.dumps([TALK["messages"], TALK["messages"]]), None),
        (f"{json.dumps(TALK['messages'])}\n{json.dumps(TALK['messages'])}\n", [1, 2]),
    ],
)
def test_the_content_and_not_the_name_decides_how_values_are_divided(
    name: str, data: str, lines: list[int] | None, tmp_path: Path
):
    raw = data.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if "\r" in data else raw)
    found = read(tmp_path / name)
    assert [(given.persona, given.question_index, given.num_turns) for given in found] == [("a", 0, 1), ("a", 1, 1)]
    if lines is not None:
        assert [given.place for given in found] == [f"{tmp_path / name}, line {line}" for line in lines]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_another_encoding_is_named_with_the_command_that_converts_it(encoding: str, pack: Any, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(pack(LINE.encode(encoding)))
    error = refusal(tmp_path / "a.jsonl", skip_invalid=True)
    name = encoding[:6].upper()
    assert (error.code, error.file) == ("not_utf8", str(tmp_path / "a.jsonl"))
    assert error.message == f"is {name} text, and must be UTF-8."
    assert f"iconv -f {name} -t UTF-8" in (error.hint or "")


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"PAR1", "Parquet"),
        (b"PK\x03\x04", "zip"),
        (b"(\xb5/\xfd", "zstd"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"BZh9", "bzip2"),
    ],
)
def test_another_format_is_named(head: bytes, says: str, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(head + bytes(100))
    assert says in refusal(tmp_path / "a.jsonl").message


def test_gzip_that_ends_early_or_is_damaged_is_refused(tmp_path: Path):
    packed = gzip.compress((LINE * 50).encode())
    for number, data in enumerate((packed[:-9], packed[:30] + b"\xff\xff\xff" + packed[33:], b"\x1f\x8b")):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(data)
        assert refusal(path).code == "unreadable_file"


def test_a_document_that_is_broken_names_its_line_once(tmp_path: Path):
    text = json.dumps([TALK, TALK], indent=1).replace('"Nobody."', "Nobody.", 1)
    (tmp_path / "a.json").write_text(text)
    error = refusal(tmp_path / "a.json", skip_invalid=True)
    line = text[: text.index("Nobody.")].count("\n") + 1
    assert error.message == f"is not JSON: Expecting value ({tmp_path / 'a.json'}, line {line})."


def test_a_first_line_that_is_cut_short_spoils_no_other(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(f'{{"messages": [\n{LINE}\n{LINE}\n')
    found = read_conversations(str(tmp_path / "a.jsonl"), skip_invalid=True)
    assert [given.conversation_index for given in found.conversations] == [1, 2]
    assert [problem.place for problem in found.skipped] == [f"{tmp_path / 'a.jsonl'}, line 1"]


def test_folders_are_read_and_hidden_files_are_not(tmp_path: Path):
    for name in ("b.jsonl", "a/c.JSONL", "a/d/e.json", "f.jsonl.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(LINE.encode()) if name.endswith("gz") else LINE.encode())
    for name in ("._b.jsonl", ".git/x.json", "__MACOSX/b.jsonl", "a/.ipynb_checkpoints/c.jsonl", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "a/d/again").symlink_to(tmp_path)
    found = read(tmp_path)
    assert [given.persona for given in found] == ["c", "e", "b", "f"]
    assert [given.conversation_index for given in found] == [0, 1, 2, 3]


def test_an_empty_file_is_noted_among_others_and_refused_alone(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "b.jsonl").write_text(" \n")
    assert read_conversations(str(tmp_path)).notes == (f"Without a conversation: {tmp_path / 'b.jsonl'}.",)
    assert refusal(tmp_path / "b.jsonl").code == "no_conversations"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("talks.json", "talks.jsonl"),
        ("talks.jsonl", "talks.jsonl.gz"),
        ("Talks.jsonl", "talks.jsonl"),
        ("default.jsonl", "assistant_default.jsonl"),
        ("train/talks.jsonl", "test/talks.jsonl"),
        (unicodedata.normalize("NFC", "é.jsonl"), unicodedata.normalize("NFD", "é.jsonl")),
        ("straße.jsonl", "STRASSE.jsonl"),
    ],
)
def test_two_files_of_one_name_are_refused_by_both(one: str, other: str, tmp_path: Path):
    for name in (one, other):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not read")
    error = refusal(tmp_path, skip_invalid=True)
    assert error.code == "equal_names"
    assert str(tmp_path / one) in error.message
    assert str(tmp_path / other) in error.message


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jsonl"))
        for path in (tmp_path / "pipe.jsonl", tmp_path / "socket.jsonl", Path("/dev/null"), Path("/dev/zero")):
            assert "is a pipe, a socket or a device" in refusal(path).message


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path):
    path = os.fsencode(tmp_path) + b"/\xff.jsonl"
    with open(path, "w") as file:  # noqa: PTH123 - a name in bytes
        file.write(LINE)
    assert refusal(tmp_path).code == "bad_name"
    assert refusal(Path(os.fsdecode(path))).code == "bad_name"
