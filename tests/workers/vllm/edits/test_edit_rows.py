"""Rows of the workers' tables: each intervention and direction once, kept while used, then given to others."""

from __future__ import annotations

import numpy as np
import pytest
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.interventions import Ablate, AddVector, Cap, Direction, Intervention
from persona_atlas.workers.vllm.edits.plan import EditPlan, EditUpload, RequestEdits
from persona_atlas.workers.vllm.edits.rows import EditRows, SettingRows

X, Y, Z = (Direction.of(row) for row in 2 * np.eye(3))


def rows_for(*places: int, directions: int = 2, settings: int = 4) -> EditRows:
    return EditRows(EditPlan(tuple(places), directions, settings), num_layers=3, d_model=3)


def taken(rows: EditRows, *edits) -> tuple[SettingRows, EditUpload | None]:
    found = rows.take(Intervention(edits))
    assert found is not None
    return found


def test_a_row_has_the_terms_of_each_edit_at_its_place_and_directions_of_length_one():
    edits = (Cap(1, X, 1.5), AddVector(1, Y, -3.0), Ablate(2, X))
    rows, upload = taken(rows_for(0, 1, 1, 2), *edits)
    assert upload is not None
    units = {row: np.frombuffer(data, "<f4").tolist() for row, data in upload.directions}
    assert sorted(units.values()) == [[0, 1, 0], [1, 0, 0]]
    ((row, setting),) = upload.settings
    assert row == rows.response == rows.prompt > 0
    inf = float("inf")
    assert [(place, units[direction], *terms) for place, direction, *terms in setting] == [
        (1, [1, 0, 0], 0.0, 0.0, 1.5),
        (2, [0, 1, 0], -6.0, 0.0, -inf),
        (3, [1, 0, 0], 0.0, -1.0, -inf),
    ]


def test_prompts_have_a_row_of_their_own_only_where_they_are_edited_otherwise():
    rows = rows_for(0, 0)
    of_response, _ = taken(rows, Cap(0, X, 1.0, "response"))
    assert (of_response.prompt, of_response.salt) == (0, None)
    both, _ = taken(rows, Cap(0, X, 1.0), Ablate(0, Y, "response"))
    assert len({0, of_response.response, both.prompt, both.response}) == 4
    all_alike, _ = taken(rows, Cap(0, X, 1.0))
    assert both.salt == all_alike.salt is not None
    # Where the response begins decides what may be shared after it, unless prompts are edited alike.
    assert both.of_request(5).key != both.of_request(6).key
    assert all_alike.of_request(5).key == ""
    assert RequestEdits.from_json(both.of_request(5).to_json()) == both.of_request(5)


def test_what_was_written_is_not_written_again_until_its_rows_were_needed():
    rows = rows_for(0)
    (first, upload), (again, nothing) = taken(rows, Cap(0, X, 1.0)), taken(rows, Cap(0, X, 1.0))
    assert upload is not None
    assert (nothing, again) == (None, first)
    _, upload = taken(rows, Cap(0, X, 2.0))
    assert upload is not None
    assert upload.directions == ()
    taken(rows, Cap(0, Y, 1.0))
    assert rows.take(Intervention((Cap(0, Z, 1.0),))) is None, "both directions are in use"
    rows.give_back(Intervention((Cap(0, X, 1.0),)))
    rows.give_back(Intervention((Cap(0, X, 2.0),)))
    assert rows.take(Intervention((Cap(0, Z, 1.0),))) is None, "one of the requests is not done"
    rows.give_back(Intervention((Cap(0, X, 1.0),)))
    _, upload = taken(rows, Cap(0, Z, 1.0))
    assert upload is not None
    assert len(upload.directions) == 1
    rows.give_back(Intervention((Cap(0, Y, 1.0),)))
    _, upload = taken(rows, Cap(0, X, 1.0))
    assert upload is not None, "it was forgotten"
    assert len(upload.directions) == 1


@pytest.mark.parametrize(
    ("edits", "code", "words"),
    [
        ((Cap(1, X, 1.0),), "no_intervention", "layer 1 1 times"),
        ((Cap(0, X, 1.0), Cap(0, Y, 1.0), Cap(0, X, 2.0)), "no_intervention", "layer 0 3 times"),
        ((Cap(0, X, 1.0), Cap(0, Y, 1.0), Cap(2, Z, 1.0)), "too_many_directions", "3 directions"),
        ((Cap(3, X, 1.0),), "bad_intervention", "layers 0 to 2"),
        ((Cap(0, Direction.of([1.0]), 1.0),), "bad_intervention", "d_model is 3"),
    ],
)
def test_what_finds_no_rows_whatever_else_there_is_is_refused(edits, code: str, words: str):
    with pytest.raises(UnitError, match=words) as refused:
        rows_for(0, 0, 2).take(Intervention(edits))
    assert refused.value.code == code
    assert refused.value.is_permanent
