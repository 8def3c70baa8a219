"""The table of a run's edits: exact, the same bytes each time, and refused when it is not the one that was written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import StoreError
from persona_atlas.jobs.interventions import Ablate, AddVector, Cap, Direction, Edit
from persona_atlas.jobs.work.run_edits import ResolvedEntry, RunEdits
from persona_atlas.storage.format.stored_edits import StoredEdits, edits_of, stored_edits

NUMBERS = st.floats(-1e30, 1e30, allow_nan=False)
DIRECTIONS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3).map(
    Direction.of
)
LAYERS = st.integers(0, 200)
POSITIONS = st.sampled_from(["all", "response"])
EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.builds(AddVector, LAYERS, DIRECTIONS, NUMBERS, POSITIONS),
    st.builds(Ablate, LAYERS, DIRECTIONS, POSITIONS),
    st.builds(Cap, LAYERS, DIRECTIONS, NUMBERS, POSITIONS),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(EDITS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_edits_read_back_as_they_were_to_the_last_bit(edits: list[list[Edit]]):
    entries = tuple(ResolvedEntry({"cap": 1}, "runs/demo", tuple(of), "m", "r", "Note.") for of in edits)
    whole = RunEdits(entries)
    stored, data = stored_edits(whole)
    assert stored_edits(whole) == (stored, data)
    read = edits_of(StoredEdits.model_validate_json(stored.model_dump_json()), data, "runs/x")
    assert read == whole
    assert read.digest == whole.digest == stored.digest


def test_any_change_of_what_is_done_changes_the_digest_and_no_change_of_its_source_does():
    cap = Cap(3, Direction.of([1.0, 2.0]), 0.5)
    whole = RunEdits((ResolvedEntry({"cap": 0.5}, "runs/demo", (cap,)),))
    others = (
        replace(cap, layer=4),
        replace(cap, floor=np.nextafter(0.5, 1)),
        replace(cap, positions="response"),
        replace(cap, vector=Direction.of([1.0, np.nextafter(np.float32(2), np.float32(3))])),
        Ablate(3, cap.vector),
        AddVector(3, cap.vector, 0.5),
    )
    digests = {RunEdits((ResolvedEntry({"cap": 0.5}, "runs/demo", (other,)),)).digest for other in others}
    assert len(digests | {whole.digest}) == len(others) + 1
    moved = ResolvedEntry({"cap": 0.5, "axis": "elsewhere"}, "elsewhere", (cap,), "other", "reduction")
    assert RunEdits((moved,)).digest == whole.digest


def test_a_missing_or_changed_table_is_damage():
    stored, data = stored_edits(RunEdits((ResolvedEntry({}, "a", (Ablate(0, Direction.of([1.0])),)),)))
    for found in (None, data + b" "):
        with pytest.raises(StoreError) as caught:
            edits_of(stored, found, "runs/x")
        assert (caught.value.code, caught.value.file) == ("bad_object", f"runs/x/{stored.path}")
