"""``persona-atlas catalog``: which personas a name or a glob lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import Answered

ROLE = "description: A rover.\nprompts: [Sail on.]\njudge: Ships.\n"


@pytest.mark.parametrize(
    ("asked", "listed"), [("a[b]", ["a[b]"]), ("star*", ["star*"]), ("s*", ["star*", "starling"]), ("[a]b", ["ab"])]
)
def test_an_exact_name_lists_itself_before_it_is_a_glob(
    tmp_path: Path, answered: Answered, asked: str, listed: list[str]
):
    (tmp_path / "roles").mkdir()
    (tmp_path / "questions.yaml").write_text("questions:\n  q1: Why?\n")
    for name in ("a[b]", "ab", "star*", "starling"):
        (tmp_path / "roles" / f"{name}.yaml").write_text(ROLE)
    found = answered("catalog", asked, "--from", tmp_path)
    assert [persona["name"] for persona in found["personas"]] == listed
