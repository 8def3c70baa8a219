"""Catalogs: the built-in one, a directory of one's own with mistakes in it, the released layout with its oddities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.personas import Question

from fakes import small_plan, small_spec

ROLE = "description: A rover.\nprompts:\n  - Sail on.\n  - Drink rum.\njudge: Ships and rum.\n"
TRAIT = "description: Worries.\npairs:\n  - pos: Fret.\n    neg: Rest.\nquestions:\n  - What now?\njudge: Frets.\n"


@pytest.fixture
def native(tmp_path: Path) -> Path:
    root = tmp_path / "own"
    (root / "roles").mkdir(parents=True)
    (root / "traits").mkdir()
    (root / "roles" / "sea_rover.yaml").write_text(ROLE)
    (root / "traits" / "stoic.yaml").write_text(TRAIT)
    (root / "roles" / "stoic.yaml").write_text(ROLE)
    (root / "default.yaml").write_text('description: Itself.\nprompts: ["", "You are {model_name}."]\n')
    (root / "questions.yaml").write_text("questions:\n  a: Who are you?\n  b: Who are you?\n")
    rubric = "Is it {name}? {description} {question} {answer}"
    (root / "rubrics.yaml").write_text(f"role: 'R {rubric}'\ntrait: 'T {rubric}'\n")
    return root


@pytest.fixture
def released(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    roles, traits = root / "roles" / "instructions", root / "traits" / "instructions"
    roles.mkdir(parents=True)
    traits.mkdir(parents=True)
    neutral = ["", "You are an AI.", "You are a large language model.", "You are {model_name}.", "Respond as yourself."]
    (roles / "default.json").write_text(json.dumps({"instruction": [{"pos": text} for text in neutral]}))
    for name in ("pirate", "stoic"):
        contents = {
            "instruction": [{"pos": f"Be a {name}, way {i}."} for i in range(5)],
            "questions": [f"Question {i}?" for i in range(39)] + ["Question 0?"],
            "eval_prompt": f"Is it a {name}? {{question}} {{answer}}",
        }
        (roles / f"{name}.json").write_text(json.dumps(contents))
    contents = {
        "instruction": [{"pos": f"Be stoic {i}.", "neg": f"Weep {i}."} for i in range(5)],
        "questions": ["Own?"],
        "eval_prompt": "0-100 {question} {answer}",
    }
    (traits / "stoic.json").write_text(json.dumps(contents))
    lines = [
        {"question": "Who are you?", "id": 0},
        {"question": "Two\u2028lines?", "id": 1},
        {"question": "Who are you?", "id": 2},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (root / "extraction_questions.jsonl").write_text(text + "\n\n")
    return root


def refusal(act: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        act()
    return caught.value


def test_the_built_in_catalog_opens_and_every_persona_in_it_reads():
    catalog = load_catalog()
    assert catalog.names("default") == ("assistant_default",)
    assert len(catalog.persona("role", "pirate").prompts) == 5
    assert len(catalog.persona("trait", "anxious").counter_prompts) == 5
    assert catalog.persona("default", "assistant_default").prompts[0] == ""


def test_a_file_is_read_when_asked_for_and_then_remembered(native: Path):
    catalog = load_catalog(str(native))
    first = catalog.persona("role", "sea_rover")
    (native / "roles" / "sea_rover.yaml").unlink()
    assert catalog.persona("role", "sea_rover") is first


def test_a_directory_in_our_layout_is_a_catalog(native: Path):
    catalog = load_catalog(str(native))
    assert catalog.names("role") == ("sea_rover", "stoic")
    assert catalog.names("trait") == ("stoic",)
    assert catalog.questions == (Question("a", "Who are you?"), Question("b", "Who are you?"))
    rover = catalog.persona("role", "sea_rover")
    assert rover.prompts == ("Sail on.", "Drink rum.")
    assert rover.judge_prompt == "R Is it sea rover? Ships and rum. {question} {answer}"
    stoic = catalog.persona("trait", "stoic")
    assert (stoic.prompts, stoic.counter_prompts) == (("Fret.",), ("Rest.",))
    assert stoic.judge_prompt.startswith("T Is it stoic?")
    assert stoic.questions == (Question("stoic-0", "What now?"),)
    assert catalog.persona("default", "assistant_default").prompts == ("", "You are {model_name}.")


@pytest.mark.parametrize(
    ("kind", "name", "text", "said"),
    [
        ("role", "sea_rover", ROLE.replace("judge:", "jugde:"), ["line 5", "jugde", "Did you mean 'judge'?"]),
        ("role", "sea_rover", ROLE.replace("  - Drink rum.", "  - ''"), ["line 4", "prompts.1"]),
        ("role", "sea_rover", ROLE.replace("Sail on.", "Sail: on: and on"), ["line 3"]),
        (
            "role",
            "sea_rover",
            ROLE.replace("description: A rover.\n", ""),
            ["sea_rover.yaml", "description", "missing"],
        ),
        ("role", "sea_rover", ROLE.replace("A rover.", "7"), ["line 1", "description"]),
        ("role", "sea_rover", "description: x\nprompts: []\njudge: x\n", ["line 2", "prompts"]),
        ("role", "sea_rover", "", ["must be a mapping of fields, but is empty"]),
        ("trait", "stoic", TRAIT.replace("    neg: Rest.\n", ""), ["line 3", "pairs.0.neg", "missing"]),
        ("trait", "stoic", TRAIT.replace("neg:", "negg:"), ["pairs.0"]),
    ],
)
def test_a_faulty_persona_file_is_named_with_its_line(native: Path, kind: str, name: str, text: str, said: list[str]):
    path = native / f"{kind}s" / f"{name}.yaml"
    path.write_text(text)
    catalog = load_catalog(str(native))
    assert kind in ("role", "trait")
    error = refusal(lambda: catalog.persona("role" if kind == "role" else "trait", name))
    assert error.file == str(path)
    for part in said:
        assert part in str(error)
    assert load_catalog(str(native)).persona("role", "stoic").name == "stoic"


def test_faulty_questions_are_refused_when_the_catalog_is_opened(native: Path):
    (native / "questions.yaml").write_text("questions:\n  a: What?\n  b: [x]\n")
    error = refusal(lambda: load_catalog(str(native)))
    assert (error.file, error.field) == (str(native / "questions.yaml"), "questions.b")
    assert "line 3" in str(error)


def test_faulty_rubrics_are_named_when_a_role_is_read(native: Path):
    (native / "rubrics.yaml").write_text("role: a\ntrait: b\nrolle: c\n")
    error = refusal(lambda: load_catalog(str(native)).persona("role", "stoic"))
    assert (error.file, error.field) == (str(native / "rubrics.yaml"), "rolle")


def test_the_released_layout_loads_with_all_its_oddities(released: Path):
    catalog = load_catalog(str(released))
    assert catalog.names("role") == ("pirate", "stoic")
    assert catalog.names("trait") == ("stoic",)
    assert catalog.names("default") == ("assistant_default",)
    default = catalog.persona("default", "assistant_default")
    assert default.prompts[0] == ""
    assert default.questions == ()
    assert default.system_prompt("pos", 3, "Smol") == "You are Smol."
    pirate = catalog.persona("role", "pirate")
    assert len(pirate.prompts) == 5
    assert len(pirate.questions) == 40
    assert pirate.questions[0].text == pirate.questions[39].text
    assert pirate.questions[0].id != pirate.questions[39].id
    assert pirate.judge_prompt == "Is it a pirate? {question} {answer}"
    assert catalog.persona("role", "stoic").counter_prompts == ()
    assert catalog.persona("trait", "stoic").counter_prompts[4] == "Weep 4."
    assert [q.text for q in catalog.questions] == ["Who are you?", "Two\u2028lines?", "Who are you?"]
    assert [q.id for q in catalog.questions] == ["0", "1", "2"]


def test_a_job_can_be_planned_over_the_released_layout(released: Path):
    personas = {"catalog": str(released), "roles": {"names": ["stoic"]}, "traits": {"names": ["stoic"]}}
    plan = small_plan(small_spec(personas=personas), load_catalog(str(released)))
    assert plan.rollouts_by_kind() == {"default": 15, "role": 15, "trait": 30}
    unit = plan.by_id["default.assistant_default.pos.p3.b0"]
    assert next(plan.requests(unit).first(unit)).system_prompt == "You are Nobody."
    assert len(plan.by_id) == len(plan.units) == 5 + 5 + 10


def test_the_released_layout_without_shared_questions_asks_for_others(released: Path):
    (released / "extraction_questions.jsonl").unlink()
    catalog = load_catalog(str(released))
    error = refusal(lambda: small_plan(small_spec(), catalog))
    assert (error.field, error.code) == ("personas.default.questions", "too_many")


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ('{"instruction": [{"pos": "a"},\n {"pos": }]}', "line 2"),
        ("[1]", "not a JSON object"),
        ("{}", "instruction"),
        ('{"instruction": [{"pos": "a"}, {"neg": "b"}]}', "instruction 1"),
        ('{"instruction": [{"pos": " "}]}', "instruction 0"),
        ('{"instruction": [{"pos": "a"}], "questions": [1]}', "questions"),
    ],
)
def test_a_faulty_released_file_is_named(released: Path, contents: str, said: str):
    path = released / "roles" / "instructions" / "pirate.json"
    path.write_text(contents)
    error = refusal(lambda: load_catalog(str(released)).persona("role", "pirate"))
    assert error.file == str(path)
    assert said in str(error)


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 3}', '{"question": "  "}'])
def test_a_faulty_line_of_the_released_questions_is_named(released: Path, line: str):
    path = released / "extraction_questions.jsonl"
    path.write_text('{"question": "Good?", "id": 0}\n\n' + line + "\n")
    error = refusal(lambda: load_catalog(str(released)))
    assert error.file == str(path)
    assert "line 3" in str(error)


def test_globs_and_names_select_sorted_names_once():
    catalog = load_catalog()
    chosen = catalog.select("role", ["pirate", "p*", "poet"], "personas.roles.names")
    assert chosen == tuple(sorted(name for name in catalog.names("role") if name.startswith("p")))
    assert catalog.select("trait", [], "personas.traits.names") == ()
    assert len(catalog.select("role", ["*"], "x")) == 275


def test_a_name_of_another_kind_is_not_found():
    error = refusal(lambda: load_catalog().select("trait", ["pirate"], "personas.traits.names"))
    assert (error.code, error.field) == ("unknown_persona", "personas.traits.names")


def test_an_unknown_name_brings_the_nearest_or_a_few_of_those_that_are_there(native: Path):
    assert "Did you mean 'pirate'?" in str(refusal(lambda: load_catalog().persona("role", "pirat")))
    assert "It has 275: aberration" in str(refusal(lambda: load_catalog().select("role", ["zz*"], "x")))
    error = refusal(lambda: load_catalog(str(native)).persona("role", "poet"))
    assert error.file == str(native)


def test_a_directory_that_is_missing_or_no_catalog_is_refused(tmp_path: Path):
    for source in (tmp_path / "nothing", tmp_path):
        error = refusal(lambda source=source: load_catalog(str(source)))
        assert (error.code, error.file) == ("no_catalog", str(source))


def test_the_smallest_catalog_of_ones_own_is_questions_and_a_role(tmp_path: Path):
    (tmp_path / "roles").mkdir()
    (tmp_path / "questions.yaml").write_text("questions:\n  q1: What is your day like?\n")
    (tmp_path / "roles" / "ferryman.yaml").write_text("description: Rows.\nprompts: [You row by night.]\n")
    (tmp_path / "roles" / "judged.yaml").write_text("description: Judged.\nprompts: [Sit.]\njudge: Sits well.\n")
    catalog = load_catalog(str(tmp_path))
    assert catalog.persona("role", "ferryman").judge_prompt == ""
    # The built-in scale serves where a directory has none of its own.
    assert "Sits well." in catalog.persona("role", "judged").judge_prompt
    assert "{answer}" in catalog.persona("role", "judged").judge_prompt


def test_an_exact_name_selects_itself_before_it_is_a_glob(native: Path):
    for name in ("a[b]", "ab", "star*", "starling"):
        (native / "roles" / f"{name}.yaml").write_text(ROLE)
    catalog = load_catalog(str(native))
    assert catalog.select("role", ["a[b]"], "x") == ("a[b]",)
    assert catalog.select("role", ["star*"], "x") == ("star*",)
    assert catalog.select("role", ["sta*"], "x") == ("star*", "starling")
    assert catalog.select("role", ["[a]b"], "x") == ("ab",)
