"""Reading a catalog of conversations: what is accepted, and which file and line an error names."""

from __future__ import annotations

from pathlib import Path

import pytest
from persona_atlas.jobs.dialogues.topics import DomainTopics, UserPersona, load_conversations
from persona_atlas.jobs.errors import InputError

SMALL = """personas:
  wren:
    description: You are Wren, who keeps bees.
    manner: You hum.
    topics: [The bees left on Monday., Honey is dark this year.]
  otto:
    description: You are Otto.
    manner: You shout.
    topics: [Your goat ate a letter.]
"""


def error_of(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_conversations(str(folder))
    return caught.value


def test_a_directory_gives_a_domain_for_each_file_and_people_in_the_order_of_the_file(tmp_path: Path):
    (tmp_path / "farm.yaml").write_text(SMALL)
    (tmp_path / "arts.yaml").write_text(SMALL)
    (tmp_path / "._farm.yaml").write_text("left behind by an archiver")
    arts, farm = load_conversations(str(tmp_path))
    bees = UserPersona(
        "wren", "You are Wren, who keeps bees.", "You hum.", ("The bees left on Monday.", "Honey is dark this year.")
    )
    goat = UserPersona("otto", "You are Otto.", "You shout.", ("Your goat ate a letter.",))
    assert (arts, farm) == (DomainTopics("arts", (bees, goat)), DomainTopics("farm", (bees, goat)))


@pytest.mark.parametrize(
    ("old", "new", "code", "field", "line"),
    [
        ("    manner: You hum.\n", "", "missing_key", "personas.wren.manner", 2),
        ("manner: You hum.", "maner: You hum.", "unknown_key", "personas.wren.maner", 4),
        ("[Your goat ate a letter.]", "[]", "bad_value", "personas.otto.topics", 9),
        ("[Your goat ate a letter.]", "[no]", "not_a_text", "personas.otto.topics.0", 9),
        ("Honey is dark this year.", "' '", "bad_value", "personas.wren.topics.1", 5),
        ("Honey is dark this year.", "The bees left on Monday.", "bad_value", "personas.wren.topics", 5),
        ("  otto:", "  wren:", "repeated_key", "wren", 6),
        ("  otto:", "  a/b:", "bad_value", "personas.a/b", 6),
    ],
)
def test_a_fault_is_reported_with_file_line_and_field(
    old: str, new: str, code: str, field: str, line: int, tmp_path: Path
):
    path = tmp_path / "farm.yaml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new))
    error = error_of(tmp_path)
    assert (error.code, error.file) == (code, str(path))
    assert field in (error.field or "")
    assert str(line) in error.message


def test_a_directory_that_is_missing_or_holds_no_domain_is_refused(tmp_path: Path):
    assert error_of(tmp_path / "nowhere").code == "no_catalog"
    assert error_of(tmp_path).code == "no_catalog"


def test_a_file_whose_name_cannot_be_stored_is_refused(tmp_path: Path):
    (tmp_path / "farm .yaml").write_text(SMALL)
    assert error_of(tmp_path).code == "bad_name"


def test_domains_that_differ_only_in_case_are_refused(tmp_path: Path):
    for name in ("farm.yaml", "Farm.yaml"):
        (tmp_path / name).write_text(SMALL)
    assert error_of(tmp_path).code == "equal_names"
