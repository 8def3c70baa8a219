"""A spec as it was given: read from a file or built in Python, with its overrides, before it is validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .text_files import read_text
from .user_paths import local_path
from .yaml_file import parse_yaml, set_by_path


@dataclass(frozen=True, slots=True)
class GivenSpec:
    """A spec that is not validated yet.

    Attributes:
        data: Its sections; whatever the file holds, which need not be a mapping.
        text: Text of its file, in which lines are looked up for errors; empty for none.
        file: Path of its file, or where else it comes from; empty for none.
    """

    data: Any
    text: str = ""
    file: str = ""

    def overridden(self, overrides: Sequence[str]) -> GivenSpec:
        """Apply ``key.path=value`` assignments, one after the other.

        Args:
            overrides: The assignments.

        Raises:
            InputError: One is no assignment, or its path leads into a value.

        Example:
            >>> GivenSpec({"seed": 0}).overridden(["seed=7"]).data
            {'seed': 7}
        """
        data = self.data
        if isinstance(data, Mapping):
            for assignment in overrides:
                data = set_by_path(data, assignment)
        return GivenSpec(data, self.text, self.file)


def read_spec(path: str | Path, what: str) -> GivenSpec:
    """Read the YAML file of a spec.

    Args:
        path: The file.
        what: What it is, for errors, as ``a job spec``.

    Raises:
        InputError: It is missing, or no YAML; names the file and line.
    """
    file = local_path(path, "SPEC")
    text = read_text(file, what)
    return GivenSpec(parse_yaml(text, str(file)), text, str(file))
