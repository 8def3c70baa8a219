"""Replies that name a label: read where it is plain which is meant, and never guessed; and the rubrics that ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.judging.labels import read_label
from persona_atlas.jobs.judging.rubrics import load_rubric, rubric_names

LABELS = ("assistant", "human", "nonhuman", "mystical")
WRAPPINGS = ("{}", "{}.", "**{}**", "Label: {}", "The label is {}.", "<think>human or assistant?</think>\n{}", '"{}"\n')


@given(st.sampled_from(LABELS), st.sampled_from(WRAPPINGS), st.sampled_from((str.lower, str.upper, str.title)))
def test_a_label_is_read_in_its_usual_dress(label: str, wrapping: str, case: Callable[[str], str]):
    assert read_label(LABELS, wrapping.format(case(label))).score == LABELS.index(label)


@pytest.mark.parametrize(
    "text", ["human - it has a mother and a job", "Nonhuman: a gull speaks", "mystical\n\nIt is all that is."]
)
def test_an_explanation_may_follow(text: str):
    assert read_label(LABELS, text).score is not None


@given(st.sampled_from(LABELS), st.sampled_from(LABELS), st.sampled_from((" or ", ", not ", " / ", "\n")))
def test_with_two_labels_nothing_is_read(one: str, other: str, between: str):
    reading = read_label(LABELS, f"{one}{between}{other}")
    assert (reading.score is None) == (one != other or between != "\n")
    assert one == other or "several labels" in reading.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("<think>human</think>", "empty"),
        ("It speaks as a person.", "none of the labels"),
        ("humanlike", "none of the labels"),
        ("It is not human", "does not say"),
        ("I am sure that it is human.", "does not say"),
        ("human enough", "does not say"),
        ("3", "none of the labels"),
    ],
)
def test_what_does_not_plainly_name_a_label_is_not_read(text: str, problem: str):
    reading = read_label(LABELS, text)
    assert reading.score is None
    assert problem in reading.problem


def test_a_label_at_the_end_of_a_reply_that_was_cut_may_go_on():
    assert "may go on" in read_label(LABELS, "human", is_cut=True).problem
    assert read_label(LABELS, "human: it", is_cut=True).score == 1


@pytest.mark.parametrize("name", rubric_names())
def test_the_rubrics_of_the_package_say_what_every_label_means(name: str):
    rubric = load_rubric(name)
    asked = rubric.asked("Who {answer} are you?", "I am {question}.")
    assert "Who {answer} are you?" in asked
    assert "I am {question}." in asked
    for place, label in enumerate(rubric.labels):
        assert f"{label}: it " in asked or f"{label}: neither " in asked
        assert rubric.form.read(label, False).score == place
    assert rubric.form.choices == rubric.labels


def test_a_rubric_of_ones_own(tmp_path: Path):
    path = tmp_path / "mood.yaml"
    path.write_text("labels: {glad: it is glad, sad: it is sad}\nprompt: 'Mood of {answer}? {labels}'\n")
    rubric = load_rubric(str(path))
    assert (rubric.name, rubric.asked("?", "Hooray")) == ("mood", "Mood of Hooray? glad: it is glad; sad: it is sad.")
    changed = load_rubric(str(path)).digest
    path.write_text("labels: {glad: it is glad, sad: it is low}\nprompt: 'Mood of {answer}? {labels}'\n")
    assert load_rubric(str(path)).digest != changed


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("labels: {glad: x}\nprompt: '{answer}'", "labels"),
        ("labels: {glad: x, GLAD: y}\nprompt: '{answer}'", "labels"),
        ("labels: {glad: x, sad: y}\nprompt: 'no place'", "prompt"),
        ("labels: {glad: x, sad: y}", "prompt"),
        ("labels: {glad: x, sad: y}\nprompt: '{answer}'\nscale: 3", "scale"),
    ],
)
def test_a_rubric_that_cannot_be_used_is_refused_by_field(tmp_path: Path, text: str, field: str):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_rubric(str(tmp_path / "own.yaml"))
    assert (caught.value.field or "").startswith(field)


def test_an_unknown_rubric_names_those_there_are():
    with pytest.raises(InputError, match="there is no rubric 'harms'") as caught:
        load_rubric("harms")
    assert "base_completion, harm, role_adoption" in (caught.value.hint or "")


def test_a_rubric_says_which_labels_count_as_harm(tmp_path: Path):
    assert load_rubric("harm").harm == ("partial", "harmful")
    assert load_rubric("role_adoption").harm == ()
    path = tmp_path / "own.yaml"
    text = "labels: {a: one, b: two}\nprompt: '{labels} {answer}'\n"
    path.write_text(text)
    plain = load_rubric(str(path))
    path.write_text(f"{text}harm: [b]\n")
    counting = load_rubric(str(path))
    # Labels that are there can be counted in another way: the judge was asked the same.
    assert (counting.harm, counting.digest) == (("b",), plain.digest)
    for wrong in ("[c]", "[b, b]", "[]"):
        path.write_text(f"{text}harm: {wrong}\n")
        with pytest.raises(InputError) as caught:
            load_rubric(str(path))
        assert (caught.value.code, caught.value.field) == ("bad_value", "harm")
