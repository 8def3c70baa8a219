"""Refuse YAML that no reader can finish: it refers to itself, is nested too deeply, or repeats itself without bound.

The text is read as a stream of events, which needs neither recursion nor memory for the repeated parts. What passes may
be composed and walked recursively.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from ..errors import InputError

MAX_DEPTH = 64
"""Most levels of lists and mappings within one another, those behind aliases included."""

MAX_REPEATED = 100_000
"""Most values that all aliases of a text may stand for together."""


@dataclass(slots=True)
class _Collection:
    """A list or mapping: its anchor, and what was counted in it so far.

    Attributes:
        anchor: Name that aliases use; None without one.
        size: Number of values in it, itself and those behind aliases included.
        height: Levels in it, itself included.
    """

    anchor: str | None
    size: int = 1
    height: int = 1


def refuse_unbounded(text: str, file: str, loader: type[yaml.SafeLoader]) -> None:
    """Refuse YAML that cannot be read in bounded time and depth.

    Args:
        text: The YAML.
        file: Name of the file, for errors.
        loader: Class that parses it.

    Raises:
        InputError: The text refers to itself, is nested more than 64 levels deep, or its aliases stand for more than
            100,000 values; names the line.
        yaml.YAMLError: The text is not valid YAML.
    """
    opened: list[_Collection] = []
    closed: dict[str, _Collection] = {}
    repeated = 0
    for event in yaml.parse(text, Loader=loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(_Collection(event.anchor))
            _refuse_depth(len(opened), line, file)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = opened.pop()
            if done.anchor is not None:
                closed[done.anchor] = done
            _add(opened, done)
        elif isinstance(event, yaml.ScalarEvent):
            _add(opened, _Collection(None, height=0))
        elif isinstance(event, yaml.AliasEvent):
            if any(collection.anchor == event.anchor for collection in opened):
                raise _refusal(f"line {line} refers to the value that it is part of, as *{event.anchor}.", file)
            # An alias of a single value adds no depth; one without an anchor is refused by the parser itself.
            target = closed.get(event.anchor, _Collection(None, height=0))
            repeated += target.size
            if repeated > MAX_REPEATED:
                raise _refusal(f"up to line {line} its aliases stand for more than {MAX_REPEATED:,} values.", file)
            _refuse_depth(len(opened) + target.height, line, file)
            _add(opened, target)


def _add(opened: list[_Collection], part: _Collection) -> None:
    """Count a part in the collection that holds it."""
    if opened:
        opened[-1].size += part.size
        opened[-1].height = max(opened[-1].height, part.height + 1)


def _refuse_depth(depth: int, line: int, file: str) -> None:
    if depth > MAX_DEPTH:
        raise _refusal(f"line {line} is nested more than {MAX_DEPTH} levels deep.", file)


def _refusal(problem: str, file: str) -> InputError:
    return InputError(
        problem, code="unbounded_yaml", file=file, hint="Write the values out, without anchors and with fewer levels."
    )
