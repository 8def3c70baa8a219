"""Read existing conversations: JSON Lines, JSON documents, or a directory with one file per role.

Every entry is read before anything is refused, so that all problems are reported at once, by file, line and field.
Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...conversation import Conversation
from ...errors import InputError
from ...files.user_paths import local_path
from ...personas import Kind, Polarity
from .entries import Entry, entries_of
from .input_files import conversation_files, persona_name
from .json_values import JsonValue, json_values
from .layouts import Chat, parse_chat, require_answer, require_prompt
from .problems import LAYOUT_HINT, PROMPT_HINT, Problem, Refusal, input_error
from .released_lines import FileLabels, ReleasedLine, parse_address


@dataclass(frozen=True, slots=True)
class GivenInput:
    """What was read.

    Attributes:
        conversations: The conversations, by ascending conversation_index.
        skipped: Entries that cannot be read and were left out; their indices are not given to others.
        notes: What a user should know of the input, a sentence each.
    """

    conversations: tuple[Conversation, ...]
    skipped: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def read_conversations(source: str, *, skip_invalid: bool = False, prompts_only: bool = False) -> GivenInput:
    """Read every conversation of a file or a directory, in order of file name and line.

    Args:
        source: A file of JSON Lines or JSON, or a directory of ``.jsonl`` and ``.json`` files.
        skip_invalid: Whether to leave out entries that cannot be read, instead of refusing all. A file that cannot be
            read as a whole is refused in either case.
        prompts_only: Whether the conversations are prompts, which end without an answer.

    Raises:
        InputError: Something is not a conversation, or there is none; names the file, the line and the field.
    """
    files = conversation_files(local_path(source, "conversations.source"))
    reader = _Reader(prompts_only)
    for path in files:
        reader.read(path, persona_name(path), entries_of(json_values(path), str(path)))
    return reader.result(source, skip_invalid=skip_invalid)


def parse_conversations(
    values: Any, name: str = "conversations", *, skip_invalid: bool = False, prompts_only: bool = False
) -> GivenInput:
    """Parse conversations that are in memory, in any form that a JSON file may have.

    Args:
        values: A list of messages (one conversation), an object with ``messages`` or ``conversation``, or a list of
            either.
        name: Used instead of a file's name, as the persona of the rows and in errors.
        skip_invalid: Whether to leave out entries that cannot be read, instead of refusing all.
        prompts_only: Whether the conversations are prompts, which end without an answer.

    Raises:
        InputError: Something is not a conversation; names the entry and the field.

    Example:
        >>> talk = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Ahoy!"}]
        >>> parse_conversations(talk).conversations[0].num_turns
        1
    """
    try:
        # The same values as from a file: tuples become lists, and keys become strings.
        whole = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"is not what JSON can hold: {error}.", code="not_json", field="conversations", hint=LAYOUT_HINT
        ) from None
    reader = _Reader(prompts_only)
    reader.read(Path(name), name, entries_of([JsonValue(whole, None)], name))
    return reader.result(name, skip_invalid=skip_invalid)


@dataclass(frozen=True, slots=True)
class _Read:
    """A conversation that was parsed, until its file is read to the end and its kind is known."""

    chat: Chat
    address: ReleasedLine | None
    position: int
    place: str


@dataclass(slots=True)
class _Reader:
    """Reads files one after another, and counts over all of them."""

    prompts_only: bool
    found: list[Conversation] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    num_entries: int = 0
    samples: dict[tuple[Kind, str, Polarity, int, int], int] = field(default_factory=dict)

    def read(self, path: Path, name: str, entries: Iterator[Entry | Problem]) -> None:
        """Read the entries of one file."""
        labels = FileLabels(name)
        read: list[_Read] = []
        position = 0
        is_released: bool | None = None
        for position, entry in enumerate(entries, start=1):
            parsed = entry
            if isinstance(parsed, Entry):
                parsed = _parse(parsed, str(path), position - 1, is_released, prompts_only=self.prompts_only)
            if isinstance(parsed, _Read) and parsed.address is not None:
                parsed = labels.add(parsed.address, str(path), parsed.place) or parsed
            if isinstance(parsed, Problem):
                self.problems.append(parsed)
            else:
                is_released = parsed.address is not None
                read.append(parsed)
        if not position:
            self.empty.append(str(path))
        self.found += (self._conversation(one, labels) for one in read)
        self.num_entries += position

    def _conversation(self, read: _Read, labels: FileLabels) -> Conversation:
        address, chat = read.address, read.chat
        kind: Kind = "conversation" if address is None else labels.kind
        persona = labels.name if address is None else labels.persona
        polarity: Polarity = "pos" if address is None else labels.polarity(address)
        prompt, question = (0, read.position) if address is None else (address.prompt_index, address.question_index)
        sample = 0
        if address is not None:
            # Counted over all files, because several may hold the default Assistant.
            key = (kind, persona, polarity, prompt, question)
            sample = self.samples.get(key, 0)
            self.samples[key] = sample + 1
        return Conversation(
            kind=kind,
            persona=persona,
            polarity=polarity,
            prompt_index=prompt,
            question_index=question,
            sample_index=sample,
            conversation_index=self.num_entries + read.position,
            system_prompt=chat.system_prompt,
            messages=chat.messages,
            extra=chat.extra,
            place=read.place,
            tools=chat.tools,
            is_prompt=self.prompts_only,
        )

    def result(self, source: str, *, skip_invalid: bool) -> GivenInput:
        """Return what was read, unless there are problems that nobody allowed, or nothing was read."""
        problems = self.problems
        if problems and (not skip_invalid or not self.found or any(problem.is_of_file for problem in problems)):
            raise input_error(problems, source, may_skip=bool(self.found) and not skip_invalid)
        if not self.found:
            hint = PROMPT_HINT if self.prompts_only else LAYOUT_HINT
            raise InputError("holds no conversation.", code="no_conversations", file=source, hint=hint)
        notes = (f"Without a conversation: {', '.join(self.empty)}.",) if self.empty else ()
        return GivenInput(tuple(self.found), tuple(problems), notes)


def _parse(entry: Entry, file: str, position: int, is_released: bool | None, *, prompts_only: bool) -> _Read | Problem:
    try:
        chat = parse_chat(entry.value, prompts_only=prompts_only)
        address = parse_address(entry.value, is_released)
        if prompts_only:
            require_prompt(chat)
        else:
            require_answer(chat)
    except Refusal as refusal:
        return Problem.of(refusal, file, entry.place, of_prompts=prompts_only)
    except RecursionError:
        # Python reads a value that is a little less deep than what it can write again.
        return Problem.of(Refusal("is nested too deep", hint="Leave the deep key out."), file, entry.place)
    return _Read(chat, address, position, entry.place)
