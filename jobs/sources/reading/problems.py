"""What is wrong with conversations that were given: collected while all of them are read, then reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InputError
from ...wording import count_of

LAYOUT_HINT = 'A line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.'

PROMPT_HINT = 'A line is {"messages": [{"role": "user", "content": "..."}]}.'
"""Replaces ``LAYOUT_HINT`` where conversations are prompts without an answer."""

_MOST_REASONS = 10
_MOST_PLACES = 10


class Refusal(Exception):  # noqa: N818 - not an error of the program: its reader adds the place and makes it a Problem
    """An entry that is no conversation; raised where the reason is known, and the place is not.

    Args:
        reason: What is wrong, beginning with the verb, such as ``is not a list of messages``.
        field: Field of the entry, such as ``messages[2].role``; None for the entry as a whole.
        hint: How to fix it.
        code: Stable word for the cause.
    """

    def __init__(
        self, reason: str, field: str | None = None, hint: str = LAYOUT_HINT, code: str = "bad_conversation"
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.hint = hint
        self.code = code


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be read, and where it is.

    Attributes:
        reason: What is wrong, beginning with the verb.
        file: The file.
        place: File and line, such as ``talks.jsonl, line 3``; the file alone if it concerns the whole.
        field: Field of the entry; None for the entry as a whole.
        hint: How to fix it.
        code: Stable word for the cause.
        is_of_file: Whether a whole file cannot be read, so that leaving out single entries is no way out.
    """

    reason: str
    file: str
    place: str
    field: str | None = None
    hint: str = LAYOUT_HINT
    code: str = "bad_conversation"
    is_of_file: bool = False

    @classmethod
    def of(cls, refusal: Refusal, file: str, place: str, *, of_prompts: bool = False) -> Problem:
        """Add the place to a refusal.

        Args:
            refusal: The refusal.
            file: The file.
            place: File and line.
            of_prompts: Whether the input has to hold prompts without an answer.
        """
        hint = PROMPT_HINT if of_prompts and refusal.hint == LAYOUT_HINT else refusal.hint
        return cls(refusal.reason, file, place, refusal.field, hint, refusal.code)

    def as_dict(self) -> dict[str, str | None]:
        """Return file, place, field and reason, as a store lists what was left out."""
        return {"file": self.file, "place": self.place, "field": self.field, "reason": self.reason}

    @property
    def subject(self) -> str:
        """Field and reason, as in ``messages[2].role is missing``."""
        return f"{self.field} {self.reason}" if self.field else self.reason


def input_error(problems: Sequence[Problem], source: str, *, may_skip: bool) -> InputError:
    """Make one error of all problems.

    Args:
        problems: What was found, at least one.
        source: File or directory that was read.
        may_skip: Whether other entries are fine, so that leaving these out is a way to go on.

    Returns:
        The error. Problems of the same kind are listed together; at most ten kinds, and ten places of each, are named.
    """
    may_skip = may_skip and not any(problem.is_of_file for problem in problems)
    first = problems[0]
    way_out = " Or leave such entries out: --skip-invalid (conversations.skip_invalid: true)." if may_skip else ""
    if len(problems) == 1:
        where = f" ({first.place})" if first.place != first.file else ""
        return InputError(
            f"{first.reason}{where}.", code=first.code, field=first.field, file=first.file, hint=first.hint + way_out
        )
    groups: dict[tuple[str, str], list[str]] = {}
    has_own_hints = len({problem.hint for problem in problems}) > 1
    for problem in problems:
        # Where kinds are fixed in different ways, each says its own; the general description of a line is none.
        own = f" {problem.hint}" if has_own_hints and problem.hint != LAYOUT_HINT else ""
        groups.setdefault((problem.subject, own), []).append(problem.place)
    lines = [f"  {_listed(places)}: {subject}.{own}" for (subject, own), places in list(groups.items())[:_MOST_REASONS]]
    if len(groups) > _MOST_REASONS:
        lines.append(f"  and {count_of(len(groups) - _MOST_REASONS, 'other problem')}")
    files, codes, hints = ({getattr(problem, name) for problem in problems} for name in ("file", "code", "hint"))
    return InputError(
        "\n".join([f"{len(problems):,} places cannot be read:", *lines]),
        code=first.code if len(codes) == 1 else "bad_conversation",
        file=first.file if len(files) == 1 else source,
        hint=(first.hint if len(hints) == 1 else "Fix these, each as its reason says.") + way_out,
    )


def _listed(places: Sequence[str]) -> str:
    more = len(places) - _MOST_PLACES
    return "; ".join(places[:_MOST_PLACES]) + (f"; and {more:,} more" if more > 0 else "")
