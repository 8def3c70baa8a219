"""Whose labels are counted where nobody is asked to judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from persona_atlas.cluster.labelling.judge import judge_to_show
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.judging.rubrics import load_rubric
from persona_atlas.storage.derived.verdicts import write_verdict_record
from persona_atlas.storage.format.judge_record import JudgeRecord
from persona_atlas.storage.locations.location import open_location


def test_labels_by_another_text_of_the_rubric_are_not_counted(tmp_path: Path):
    location, rubric = open_location(str(tmp_path)), load_rubric("harm")
    assert judge_to_show(location, rubric, None, "sweep") is None
    write_verdict_record(
        location, rubric.name, JudgeRecord(name="one", source="engine", rubrics={rubric.name: rubric.digest})
    )
    assert judge_to_show(location, rubric, None, "sweep") == "one"
    # Which labels are harm is no part of what the judge was asked.
    assert judge_to_show(location, replace(rubric, harm=("harmful",)), "one", "sweep") == "one"
    for named in (None, "one"):
        with pytest.raises(InputError, match="another rubric of the name harm") as refused:
            judge_to_show(location, replace(rubric, prompt=f"{rubric.prompt} Be strict."), named, "sweep")
        assert (refused.value.code, refused.value.field) == ("other_rubric", "--judge")
