"""Edits as values: what they compute, which of them act on a prompt, and which no model takes."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.interventions import Ablate, AddVector, Cap, Direction, Edit, Intervention, Terms

D_MODEL = 5
NUMBER = st.floats(-100, 100, width=32)
ROW = st.lists(NUMBER, min_size=D_MODEL, max_size=D_MODEL)
DIRECTION = ROW.map(Direction.of).filter(lambda direction: direction.norm > 1e-3)
AXIS = Direction.of([0.0, 3.0, 0.0, 4.0, 0.0])


def edited(terms: Terms, direction: Direction, h_D: np.ndarray) -> np.ndarray:
    v_D = direction.unit.astype(np.float64)
    p = h_D @ v_D
    return h_D + v_D * (terms.a + terms.b * p + max(terms.floor - p, 0.0))


@given(DIRECTION, ROW, NUMBER)
def test_the_terms_of_each_kind_are_its_formula(direction: Direction, row: list[float], number: float):
    h_D = np.array(row)
    v_D = direction.unit.astype(np.float64)
    expected = {
        AddVector(0, direction, number): h_D + number * direction.numbers.astype(np.float64),
        Ablate(0, direction): h_D - v_D * (h_D @ v_D),
        Cap(0, direction, number): h_D - v_D * min(h_D @ v_D - number, 0.0),
    }
    for edit, expected_D in expected.items():
        got_D = edited(edit.terms, edit.vector, h_D)
        np.testing.assert_allclose(got_D, expected_D, rtol=1e-5, atol=1e-6 * direction.norm * abs(number) + 1e-9)


@given(DIRECTION, ROW, NUMBER)
def test_a_ceiling_is_the_released_clamp(direction: Direction, row: list[float], ceiling: float):
    h_D = np.array(row)
    u_D = direction.unit.astype(np.float64)
    edit = Cap.ceiling(2, direction, ceiling)
    np.testing.assert_array_equal(edited(edit.terms, edit.vector, h_D), h_D - u_D * max(h_D @ u_D - ceiling, 0.0))


@given(ROW, ROW)
def test_directions_are_equal_and_hashed_by_their_numbers(one: list[float], other: list[float]):
    first, second = Direction.of(one), Direction.of(np.array(other))
    assert (first == second) == (first.data == second.data)
    again = pickle.loads(pickle.dumps(first))  # noqa: S301 - our own bytes
    assert (again, hash(again), len(again)) == (first, hash(first), D_MODEL)
    opposite = -first
    assert -opposite == first
    assert not first.numbers.flags.writeable
    np.testing.assert_array_equal(first.numbers, np.array(one, np.float32))


def test_a_unit_has_length_one_whatever_the_scale():
    for scale in (1e-30, 1.0, 1e30):
        assert np.linalg.norm(Direction.of([3.0 * scale, 4.0 * scale]).unit) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(Direction.of([0.0, 0.0]).unit, [0, 0])


def test_a_direction_is_one_row():
    with pytest.raises(ValueError, match=r"one row of numbers; these have the shape \(1, 2\)"):
        Direction.of(np.ones((1, 2)))


EDITS: tuple[Edit, ...] = (Cap(1, AXIS, 0.5), AddVector(1, AXIS, positions="response"), Ablate(0, AXIS, "response"))


@given(st.lists(st.sampled_from(EDITS)))
def test_what_acts_on_a_prompt_is_the_key_of_the_prompt(edits: list[Edit]):
    intervention = Intervention(tuple(edits))
    of_prompt = intervention.of_prompt()
    assert of_prompt == Intervention((EDITS[0],) * edits.count(EDITS[0]))
    assert intervention.on_prompt == bool(of_prompt.edits)
    assert intervention.on_response == bool(edits)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Cap(3, AXIS, 0.0), "edits layer 3; the model has layers 0 to 2"),
        (Ablate(-1, AXIS), "edits layer -1"),
        (Ablate(0, Direction.of([1.0])), "a vector of 1 numbers at layer 0; the model's d_model is 5"),
        (AddVector(0, Direction.of([math.nan] * D_MODEL)), "at layer 0 with a number that is not finite"),
        (Ablate(0, Direction.of([1e39] * D_MODEL)), "at layer 0 with a number that is not finite"),
        (Cap(0, AXIS, math.nan), "a floor of nan at layer 0, which is not finite in float32"),
        (Cap(0, AXIS, -math.inf), "a floor of -inf at layer 0"),
        (AddVector(0, AXIS, 1e38), "a coefficient of 1e.38 at layer 0, which is not finite in float32"),
        (AddVector(0, AXIS, math.nan), "a coefficient of nan"),
        (Ablate(1, Direction.of([0.0] * D_MODEL)), "a vector of zeros at layer 1, which has no direction"),
        (Cap(1, Direction.of([0.0] * D_MODEL), 1.0), "a vector of zeros"),
        (Ablate(1, AXIS, "prompt"), "acts at layer 1 on 'prompt' tokens"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_no_model_takes_is_named(edit: Edit, says: str):
    with pytest.raises(UnitError, match=f"edit 1 of the intervention .*{says}") as caught:
        Intervention((Ablate(0, AXIS), edit)).require_applicable(3, D_MODEL)
    assert caught.value.code == "bad_intervention"


def test_what_a_model_takes_has_no_problem():
    zero = Direction.of([0.0] * D_MODEL)
    Intervention((*EDITS, AddVector(2, zero), Cap.ceiling(2, AXIS, 4.0))).require_applicable(3, D_MODEL)
