"""What the built-in conversations say: complete, varied, and each about something else; as the catalog is checked."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import NamedTuple

import pytest
from persona_atlas.jobs.dialogues.topics import DomainTopics, UserPersona, load_conversations

from likeness import common_in_order, pairs_that_may_be_alike, runs_in_several, words

LARGEST_SHARED_PART = 0.45
LARGEST_SHARE_OF_AN_OPENING = 0.03
COMMON_WORD = 0.01


class Topic(NamedTuple):
    """A topic, and where it stands."""

    place: str
    text: str
    words: list[str]


@pytest.fixture(scope="module")
def domains() -> tuple[DomainTopics, ...]:
    return load_conversations()


@pytest.fixture(scope="module")
def people(domains: tuple[DomainTopics, ...]) -> list[UserPersona]:
    return [person for domain in domains for person in domain.personas]


@pytest.fixture(scope="module")
def topics(domains: tuple[DomainTopics, ...]) -> list[Topic]:
    return [
        Topic(f"{domain.name} {person.name} {i}", text, words(text))
        for domain in domains
        for person in domain.personas
        for i, text in enumerate(person.topics)
    ]


def test_four_domains_of_five_people_with_twenty_topics(domains: tuple[DomainTopics, ...]):
    assert [domain.name for domain in domains] == ["coding", "philosophy", "therapy", "writing"]
    assert [[len(person.topics) for person in domain.personas] for domain in domains] == [[20] * 5] * 4


def test_every_person_has_a_name_of_their_own_a_need_and_a_manner(people: list[UserPersona]):
    assert len({person.name for person in people}) == 20
    for person in people:
        assert person.description.startswith(f"You are {person.name.capitalize()}, "), person.name
        assert re.search(r"\b(need|want|needs|wants|look for|think that)\b", person.description), person.name
        assert 25 <= len(words(person.description)) <= 50, person.name
        assert 15 <= len(words(person.manner)) <= 40, person.name
        assert "you" in words(person.manner), person.name


def test_a_topic_is_one_to_three_sentences_of_12_to_40_words(topics: list[Topic]):
    assert {t.place: len(t.words) for t in topics if not 12 <= len(t.words) <= 40} == {}
    assert {t.place: t.text for t in topics if len(re.split(r"(?<=[.!?])\s+", t.text)) > 3} == {}


def test_no_opening_of_two_words_begins_more_than_3_percent_of_the_topics(topics: list[Topic]):
    openings = Counter(" ".join(t.words[:2]) for t in topics)
    assert {o: n for o, n in openings.items() if n > LARGEST_SHARE_OF_AN_OPENING * len(topics)} == {}


def test_no_two_topics_share_five_words_in_a_row(topics: list[Topic]):
    shared = runs_in_several([t.words for t in topics], 5)
    assert {run: [topics[i].place for i in found] for run, found in shared.items()} == {}


def test_no_two_topics_share_more_than_45_percent_of_their_words_in_order(topics: list[Topic]):
    alike = {}
    for i, j in pairs_that_may_be_alike([t.words for t in topics], LARGEST_SHARED_PART):
        a, b = topics[i], topics[j]
        if common_in_order(a.words, b.words) > LARGEST_SHARED_PART * min(len(a.words), len(b.words)):
            alike[a.place, b.place] = (a.text, b.text)
    assert alike == {}


def test_two_topics_share_at_most_two_words_that_are_not_common(topics: list[Topic]):
    frequency = Counter(word for t in topics for word in set(t.words))
    common = {word for word, count in frequency.items() if count > COMMON_WORD * len(topics)}
    where: dict[str, list[int]] = defaultdict(list)
    shared: dict[tuple[int, int], set[str]] = defaultdict(set)
    for i, topic in enumerate(topics):
        for word in set(topic.words) - common:
            for j in where[word]:
                shared[j, i].add(word)
            where[word].append(i)
    assert {(topics[j].place, topics[i].place): w for (j, i), w in shared.items() if len(w) > 2} == {}


def test_no_two_people_are_described_in_the_same_words(people: list[UserPersona]):
    texts = [words(person.description)[3:] for person in people] + [words(person.manner) for person in people]
    assert runs_in_several(texts, 5) == {}


def test_no_topic_speaks_of_ways_to_come_to_harm(topics: list[Topic]):
    means = r"\b(suicid\w*|overdos\w*|pills?|poison\w*|hang(ed|ing) (my|your|him|her)self|knife|knives|gun|noose)\b"
    found = {t.place: m[0] for t in topics if (m := re.search(means, t.text, re.IGNORECASE))}
    # A letter "with no poison" in it is about tone.
    assert set(found) <= {"writing noor 3"}
