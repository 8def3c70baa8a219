"""Kill a process at any one of the steps in which it changes a directory.

A step is a call that opens a file for writing, renames, links or removes one. Python raises an audit event before each,
so dying in the audit hook leaves exactly the effects of all steps before it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NUMBERS = [
    (re.compile(r"\.[0-9a-f]{32}\."), "."),
    (re.compile(r"(drivers|status)/(\.?)\d{6}"), r"\1/\2N"),
    (re.compile(r"units-[0-9a-f]{16}"), "units-N"),
    (re.compile(r"-\d+\.parquet"), "-N.parquet"),
    (re.compile(r"/c/\d+/"), "/c/N/"),
]
"""Parts of a path that differ from start to start, with the replacement that names of steps have."""

_NAMES = [
    (re.compile(r"activations/resid_post/\w+/"), "ARRAY/"),
    (re.compile(r"^(activations/)?(resid_post/)?(\.?zarr\.)"), r"GROUP/\3"),
    (re.compile(r"(commits|rollouts)/(\.?)(default|role)\.\w+\.pos\.p0\.b0"), r"\1/\2UNIT"),
]
"""Parts of a path that tell objects of one kind apart, with their replacement."""


@dataclass(frozen=True)
class Step:
    """The n-th call of a function with a path, which is relative to the store, without generations and row blocks."""

    call: str
    path: str
    time: int = 1

    def __str__(self) -> str:
        return f"{self.call} {self.path}" + (f" ({self.time})" if self.time > 1 else "")


def anonymous(path: str) -> str:
    """Replace the numbers in a path that differ from start to start."""
    for pattern, instead in _NUMBERS:
        path = pattern.sub(instead, path)
    return path


def kind_of_object(path: str) -> str:
    """Return what stands for all objects of a kind: every unit, every array, every group of Zarr has the same."""
    for pattern, instead in _NAMES:
        path = pattern.sub(instead, path)
    return path


class StepWatch:
    """Records the steps of this process, for the rest of its life.

    Args:
        root: Directory of the store.
        die_at: Step before which the process is killed; None: none.
    """

    def __init__(self, root: str, die_at: Step | None = None) -> None:
        self._root = Path(root).absolute()
        self._die_at = die_at
        self._seen: Counter[tuple[str, str]] = Counter()
        self.steps: list[Step] = []
        sys.addaudithook(self._on_audit_event)

    def _on_audit_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        name = _changed(event, arguments)
        if name is None:
            return
        path = Path(os.fsdecode(name)).absolute()
        if not path.is_relative_to(self._root):
            return
        call = event.removeprefix("os.")
        key = (call, anonymous(path.relative_to(self._root).as_posix()))
        self._seen[key] += 1
        step = Step(*key, self._seen[key])
        self.steps.append(step)
        if step == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _changed(event: str, arguments: tuple[Any, ...]) -> Any:
    """Return the path that a call changes; None for other calls, which include creating a folder."""
    if event == "open":
        path, mode, flags = arguments
        is_writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or bool(set(mode or "") & set("wax+"))
        return path if is_writing and not isinstance(path, int) else None
    if event in ("os.rename", "os.link"):
        return arguments[1]
    if event in ("os.remove", "os.rmdir", "os.truncate"):
        return arguments[0]
    return None
