"""Lines of the released pipeline: the place of each in the design, and the kind of persona that a file holds.

Such a line has ``prompt_index`` and ``question_index``, and a ``label``: ``pos``, ``neg`` (the opposite of a trait), or
``default``. A file is one persona. Its labels decide the kind, since the default Assistant may have any file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...personas import DEFAULT_PERSONA, Kind, Polarity
from .input_files import names_the_default
from .problems import Problem, Refusal

ADDRESS_KEYS = ("prompt_index", "question_index")

Label = Literal["pos", "neg", "default"]

_LABELS: dict[Any, Label | None] = {"pos": "pos", "neg": "neg", "default": "default", None: None}


@dataclass(frozen=True, slots=True)
class ReleasedLine:
    """Where a line of the released pipeline stands.

    Attributes:
        prompt_index: Index of the system prompt.
        question_index: Index of the question.
        label: Its label; None if it has none.
    """

    prompt_index: int
    question_index: int
    label: Label | None


def parse_address(entry: Mapping[str, Any], expected: bool | None) -> ReleasedLine | None:
    """Parse the indices and the label of an entry.

    Args:
        entry: The entry.
        expected: Whether the entries before it have indices; None for the first of a file.

    Returns:
        Its place; None if it is a plain conversation, which has no indices.

    Raises:
        Refusal: An index or the label is not what the released pipeline writes, or the entry is not of the same sort
            as those before it.
    """
    # Other data may have one key of such a name, or both with null in them, and means something else by it.
    is_released = all(entry.get(key) is not None for key in ADDRESS_KEYS)
    if not is_released and not expected:
        return None
    if is_released and expected is False:
        raise Refusal(
            "is given here and not in the lines before, so this file is partly of the released pipeline",
            ADDRESS_KEYS[0],
            "Give every line its prompt_index and question_index, or none.",
        )
    prompt, question = (_index(entry.get(key), key) for key in ADDRESS_KEYS)
    label = entry.get("label")
    if not isinstance(label, str | None) or label not in _LABELS:
        raise Refusal(f"is pos, neg or default, not {str(label)[:40]!r}", "label", "Correct it, or leave it out.")
    return ReleasedLine(prompt, question, _LABELS[label])


def _index(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        if value is None:
            reason = "is missing, and the lines before have it"
        elif isinstance(value, str):
            reason = f"is the text {value[:40]!r}, and must be a number from 0"
        else:
            reason = f"is not a whole number from 0 but {str(value)[:40]}"
        raise Refusal(reason, key, f"Give every line its {key} as a number, without quotes, or none.")
    return value


@dataclass(slots=True)
class FileLabels:
    """The labels of a file, as its lines are read.

    Attributes:
        name: The file's name without its suffix.
        is_default: Whether it holds the default Assistant; by its name, or by the label of its first line.
        is_trait: Whether a line has the label neg.
        first: Label and place of its first line, for errors; None before it is read.
    """

    name: str
    is_default: bool = False
    is_trait: bool = False
    first: tuple[str, str] | None = None

    def add(self, line: ReleasedLine, file: str, place: str) -> Problem | None:
        """Count a line; return the problem if its label contradicts those before it or the file's name."""
        shown = line.label or "missing"
        is_named = names_the_default(self.name)
        is_default = is_named or line.label == "default"
        if self.first is None:
            self.is_default, self.first = is_default, (shown, place)
        if is_named and line.label == "neg":
            return self._problem(f"is neg, in a file that is called {self.name}", file, place)
        if is_default != self.is_default:
            return self._problem(f"is {shown}, but {self.first[0]} in {self.first[1]}", file, place)
        self.is_trait = self.is_trait or line.label == "neg"
        return None

    def _problem(self, reason: str, file: str, place: str) -> Problem:
        hint = "A file is one persona: its lines are all default, or pos, or pos and neg. Divide it into two files."
        return Problem(reason, file, place, "label", hint, "mixed_labels", is_of_file=True)

    @property
    def kind(self) -> Kind:
        """Kind of the file's persona."""
        return "default" if self.is_default else "trait" if self.is_trait else "role"

    @property
    def persona(self) -> str:
        """Name of the file's persona."""
        return DEFAULT_PERSONA if self.is_default else self.name

    def polarity(self, line: ReleasedLine) -> Polarity:
        """Polarity of a line."""
        return "neg" if self.kind == "trait" and line.label == "neg" else "pos"
