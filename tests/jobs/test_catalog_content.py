"""What the built-in catalog says: complete by its lists of names, varied, and fit to be told apart from one another."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest
from persona_atlas.jobs.catalog import Catalog, load_catalog
from persona_atlas.jobs.personas import Persona

from likeness import common_in_order, pairs_that_may_be_alike, runs_in_several, words

DATA = Path(__file__).parent / "data"
ROLES = (DATA / "roles.txt").read_text().split()
TRAITS = (DATA / "traits.txt").read_text().split()
LARGEST_SHARED_PART = 0.6
LARGEST_SHARE_OF_AN_OPENING = 0.125
COMMON_WORD = 0.005
Prompt = tuple[str, list[str]]


class Plain(NamedTuple):
    """The first prompt of a persona."""

    persona: Persona
    polarity: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.persona.kind} {self.persona.name} {self.polarity}0"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


@pytest.fixture(scope="module")
def roles(catalog: Catalog) -> list[Persona]:
    return [catalog.persona("role", name) for name in catalog.names("role")]


@pytest.fixture(scope="module")
def traits(catalog: Catalog) -> list[Persona]:
    return [catalog.persona("trait", name) for name in catalog.names("trait")]


@pytest.fixture(scope="module")
def prompts(roles: list[Persona], traits: list[Persona]) -> list[Prompt]:
    """Every prompt's place and words."""
    return [
        (f"{persona.kind} {persona.name} {polarity}{i}", words(text))
        for persona in [*roles, *traits]
        for polarity, texts in (("pos", persona.prompts), ("neg", persona.counter_prompts))
        for i, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def plain(roles: list[Persona], traits: list[Persona]) -> list[Plain]:
    """The first prompts of every persona, which say plainly who or what is shown."""
    return [
        Plain(persona, polarity, texts[0])
        for persona in [*roles, *traits]
        for polarity, texts in (("pos", persona.prompts), ("neg", persona.counter_prompts))
        if texts
    ]


def names_it(text: str, name: str) -> bool:
    """Whether a text has a name as whole words, in singular or plural."""
    spoken = name.replace("_", " ")
    forms = {spoken, f"{spoken}s", f"{spoken}es", re.sub("y$", "ies", spoken), re.sub("fe?$", "ves", spoken)}
    return any(f" {form} " in f" {' '.join(words(text))} " for form in forms)


def test_the_measure_of_likeness_is_right():
    assert common_in_order("abcd", "bxad") == 2
    assert common_in_order("", "a") == 0
    assert common_in_order("aab", "aba") == 2
    assert list(pairs_that_may_be_alike(["abcde", "vwxyz", "abcdz"], LARGEST_SHARED_PART)) == [(0, 2)]


def test_the_catalog_holds_exactly_the_listed_roles_and_traits(catalog: Catalog):
    assert (len(ROLES), len(TRAITS)) == (275, 240)
    assert list(catalog.names("role")) == sorted(ROLES)
    assert list(catalog.names("trait")) == sorted(TRAITS)


def test_every_persona_has_five_prompts_all_different(roles: list[Persona], traits: list[Persona]):
    for persona in roles:
        assert (len(persona.prompts), len(set(persona.prompts))) == (5, 5), persona.name
        assert persona.counter_prompts == (), persona.name
    for persona in traits:
        assert (len(persona.prompts), len(persona.counter_prompts)) == (5, 5), persona.name
        assert len({*persona.prompts, *persona.counter_prompts}) == 10, persona.name


def test_every_persona_is_described(roles: list[Persona], traits: list[Persona]):
    assert [p.name for p in [*roles, *traits] if not 5 <= len(words(p.description)) <= 25] == []


def test_every_prompt_has_8_to_45_words(prompts: list[Prompt]):
    assert {place: len(text) for place, text in prompts if not 8 <= len(text) <= 45} == {}


def test_no_opening_of_three_words_begins_more_than_3_percent_of_the_prompts(prompts: list[Prompt]):
    openings = Counter(" ".join(text[:3]) for _, text in prompts)
    assert {o: n for o, n in openings.items() if n > 0.03 * len(prompts)} == {}


@pytest.mark.slow
def test_no_two_prompts_share_more_than_60_percent_of_their_words_in_order(prompts: list[Prompt]):
    listed = [text for _, text in prompts]
    assert len(listed) == 275 * 5 + 240 * 10
    alike = {}
    for i, j in pairs_that_may_be_alike(listed, LARGEST_SHARED_PART):
        part = common_in_order(listed[i], listed[j]) / min(len(listed[i]), len(listed[j]))
        if part > LARGEST_SHARED_PART:
            alike[prompts[i][0], prompts[j][0]] = round(part, 2)
    assert alike == {}


def test_the_first_prompt_of_a_role_or_trait_names_it_and_that_of_the_opposite_does_not(plain: list[Plain]):
    def named(prompt: Plain) -> bool:
        # devil's advocate, passive-aggressive
        return names_it(prompt.text.replace("'", ""), prompt.persona.name)

    assert [p.place for p in plain if named(p) != (p.polarity == "pos")] == []


def test_the_first_prompt_is_one_or_two_sentences_in_the_second_person(plain: list[Plain]):
    for prompt in plain:
        sentences = re.split(r"""(?<=[.!?])"?\s+(?=["A-Z])""", prompt.text)
        assert len(sentences) <= 2, prompt.place
        assert {"you", "your", "yours", "yourself"} & set(words(prompt.text)), prompt.place


def test_no_opening_of_two_words_begins_more_than_an_eighth_of_the_first_prompts(plain: list[Plain]):
    for kind in ("role", "trait"):
        texts = [words(prompt.text) for prompt in plain if prompt.persona.kind == kind]
        openings = Counter(" ".join(text[:2]) for text in texts)
        assert {o: n for o, n in openings.items() if n > LARGEST_SHARE_OF_AN_OPENING * len(texts)} == {}, kind


def test_no_two_first_prompts_share_five_words_in_a_row(plain: list[Plain]):
    shared = runs_in_several([words(prompt.text) for prompt in plain], 5)
    assert {run: [plain[i].place for i in found] for run, found in shared.items()} == {}


def test_two_first_prompts_share_at_most_two_words_beside_names_and_common_words(
    plain: list[Plain], prompts: list[Prompt]
):
    frequency = Counter(word for _, text in prompts for word in set(text))
    common = {word for word, count in frequency.items() if count > COMMON_WORD * len(prompts)}
    where: dict[str, list[int]] = defaultdict(list)
    shared: dict[tuple[int, int], set[str]] = defaultdict(set)
    for i, prompt in enumerate(plain):
        for word in set(words(prompt.text)) - common:
            for j in where[word]:
                if word not in {*prompt.persona.name.split("_"), *plain[j].persona.name.split("_")}:
                    shared[j, i].add(word)
            where[word].append(i)
    assert {(plain[j].place, plain[i].place): w for (j, i), w in shared.items() if len(w) > 2} == {}


def test_in_at_least_half_of_the_roles_a_prompt_does_without_the_roles_name(roles: list[Persona]):
    unnamed = [r.name for r in roles if not all(names_it(prompt, r.name) for prompt in r.prompts)]
    assert len(unnamed) >= len(roles) / 2


def test_the_shared_questions_are_240_distinct_ones(catalog: Catalog):
    assert len(catalog.questions) == 240
    assert len({question.id for question in catalog.questions}) == 240
    assert len({" ".join(words(question.text)) for question in catalog.questions}) == 240
    assert {q.id: q.text for q in catalog.questions if not 5 <= len(words(q.text)) <= 32} == {}


def test_no_two_shared_questions_are_nearly_the_same(catalog: Catalog):
    listed = [(q.id, words(q.text)) for q in catalog.questions]
    alike = [(a, b) for (a, x), (b, y) in combinations(listed, 2) if common_in_order(x, y) > 0.7 * min(len(x), len(y))]
    assert alike == []


def test_no_shared_question_names_a_role(catalog: Catalog):
    named = {q.id: name for q in catalog.questions for name in ROLES if names_it(q.text, name)}
    assert named == {}


def test_every_trait_has_questions_of_its_own_that_differ(traits: list[Persona]):
    for trait in traits:
        texts = [" ".join(words(question.text)) for question in trait.questions]
        assert len(texts) >= 8, trait.name
        assert len(set(texts)) == len(texts), trait.name


def test_a_judge_is_given_question_answer_and_scale(roles: list[Persona], traits: list[Persona]):
    for persona in [*roles, *traits]:
        judge = persona.judge_prompt
        assert (judge.count("{question}"), judge.count("{answer}")) == (1, 1), persona.name
        assert set(re.findall(r"\{(\w*)\}", judge)) == {"question", "answer"}, persona.name
        assert persona.name.replace("_", " ") in judge
    for role in roles:
        assert all(re.search(rf"\b{score}:", role.judge_prompt) for score in range(4)), role.name
    for trait in traits:
        assert re.search(r"\b0 to 100\b", trait.judge_prompt), trait.name
        assert "REFUSAL" in trait.judge_prompt, trait.name


def test_every_persona_is_judged_by_a_text_of_its_own(roles: list[Persona], traits: list[Persona]):
    texts = [re.sub(rf": {p.name.replace('_', ' ')}\.", "", p.judge_prompt) for p in [*roles, *traits]]
    assert len(set(texts)) == len(texts)


def test_the_default_has_five_neutral_variants(catalog: Catalog):
    default = catalog.persona("default", "assistant_default")
    assert default.prompts[0] == ""
    assert len(set(default.prompts)) == 5
    assert sum("{model_name}" in prompt for prompt in default.prompts) == 1
