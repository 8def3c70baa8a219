"""Judges' replies: what is plainly a score is read, and whatever is not is no score at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.judging.outcomes import JUDGED_KINDS, is_on_scale
from persona_atlas.jobs.judging.replies import Reading, read_reply
from persona_atlas.jobs.personas import Kind

kinds = st.sampled_from(JUDGED_KINDS)
wrappings = st.sampled_from(
    [
        "{}",
        "  {}\n",
        "**{}**",
        "`{}`",
        "{}.",
        '"{}"',
        "Score: {}",
        "**Score:** {}",
        "score = {}",
        "The score is {}.",
        "Rating - {}",
        "I would say that the answer is: {}",
        "{} - it speaks in the role throughout.",
        "{}\n\nIt shows it throughout.",
        "<think>It could be 1, or 2, or 17.</think>\n{}",
    ]
)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Nd", "Cs"]), max_size=30)


def on_scale(kind: Kind) -> st.SearchStrategy[int]:
    return st.integers(0, 3 if kind == "role" else 100)


@given(data=st.data(), kind=kinds, wrapping=wrappings)
def test_a_score_is_read_in_every_usual_form(data: st.DataObject, kind: Kind, wrapping: str):
    score = data.draw(on_scale(kind))
    assert read_reply(kind, wrapping.format(score)) == Reading(score=float(score))


@given(data=st.data(), kind=kinds)
def test_a_score_may_name_its_scale(data: st.DataObject, kind: Kind):
    score = data.draw(on_scale(kind))
    top = 3 if kind == "role" else 100
    for text in (f"{score}/{top}", f"{score} / {top}", f"{score} out of {top}", f"Score: {score}/{top}"):
        assert read_reply(kind, text).score == score
    assert read_reply(kind, f"{score}/10").score is None


@given(kind=kinds, text=st.one_of(st.text(max_size=60), st.from_regex(r"[\s*]*[-\d.,/ a-c]{0,8}", fullmatch=True)))
def test_whatever_is_read_is_on_the_scale_and_is_one_of_three_things(kind: Kind, text: str):
    reading = read_reply(kind, text)
    assert (reading.score is not None) + reading.is_refusal + bool(reading.problem) == 1
    if reading.score is not None:
        assert is_on_scale(kind, reading.score)
        assert kind == "trait" or reading.score == int(reading.score)


@given(data=st.data(), kind=kinds, wrapping=wrappings, more=st.integers(0, 1000), between=words)
def test_with_a_second_number_nothing_is_read(data: st.DataObject, kind: Kind, wrapping: str, more: int, between: str):
    score = data.draw(on_scale(kind))
    reading = read_reply(kind, f"{wrapping.format(score)} or rather {between} and {more}")
    assert reading.score is None
    assert reading.problem


@given(kind=kinds, text=words)
def test_a_reply_without_a_digit_is_no_score(kind: Kind, text: str):
    assert read_reply(kind, text).score is None


@given(kind=kinds, number=st.one_of(st.integers(101, 10**30), st.integers(-(10**30), -1)))
def test_a_number_off_the_scale_is_not_read(kind: Kind, number: int):
    assert f"{number} is not from 0" in read_reply(kind, str(number)).problem


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        ("role", "", "empty"),
        ("role", "  \n", "empty"),
        ("role", "<think>3", "does not say that 3"),
        ("role", "three", "no number"),
        ("role", "2.5", "not one of 0, 1, 2 and 3"),
        ("role", "4", "not from 0 to 3"),
        ("role", "1,5", "of no form"),
        ("role", "p3", "of no form"),
        ("role", "3³", "of no form"),
        ("role", "٣", "of no form"),
        ("role", "1 or 2", "several numbers: 1, 2"),
        ("role", "2-3", "several numbers"),
        ("role", "The pirate has 3 ships.", "does not say that 3"),
        ("role", "1. The reply is in the role", "number of a list"),
        ("role", "REFUSAL", "no number"),
        ("trait", "REFUSAL or 0", "does not say that 0"),
        ("trait", "I see no refusal here", "no number"),
        ("trait", '{"id": 3}', "does not say that 3"),
    ],
)
def test_what_is_not_plain_is_not_guessed_at(kind: Kind, text: str, problem: str):
    reading = read_reply(kind, text)
    assert (reading.score, reading.is_refusal) == (None, False)
    assert problem in reading.problem


@pytest.mark.parametrize("text", ["REFUSAL", "refusal", "**REFUSAL**", "REFUSAL.", "REFUSAL: it does not answer."])
def test_a_refusal_is_told_apart_for_traits(text: str):
    assert read_reply("trait", text) == Reading(is_refusal=True)


def test_decimals_are_scores_of_traits_only():
    assert read_reply("trait", "72.5").score == 72.5
    assert read_reply("trait", "75%").score == 75


def test_a_number_at_the_end_of_a_reply_that_was_cut_may_go_on():
    assert "may go on" in read_reply("trait", "Score: 8", is_cut=True).problem
    assert read_reply("trait", "8 is what it gets, since it", is_cut=True).score == 8
