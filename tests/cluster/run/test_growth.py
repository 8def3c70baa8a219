"""A run that grows is in the end the run that was planned at once, and what it had stays byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.cluster.run import prepare
from persona_atlas.jobs.catalog import Catalog, load_catalog
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.jobs.personas import Question
from persona_atlas.jobs.sources.conversation_source import ConversationSource
from persona_atlas.jobs.sources.persona_source import PersonaSource
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.planned_units import read_units
from persona_atlas.storage.format.records import RunRecord, parse_record
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.run.commits import committed_units
from persona_atlas.storage.run.run_store import read_run_record
from persona_atlas.storage.verification.garbage import find_garbage, remove_garbage
from persona_atlas.storage.verification.repair import repair_run
from persona_atlas.storage.verification.verify import verify_run

from conversations import conversation
from fakes import FACTS, small_spec
from plain_driver import prepare_here, work_here
from whole_run import verified

Personas = dict[str, Any]


def job(store_url: str, personas: Personas | None = None, **changes: Any) -> JobSpec:
    """A job of a role and the default, two rollouts each, with other personas or more of them."""
    counts = {"prompts": 1, "questions": 2}
    return small_spec(
        store_url, personas=_merged({"roles": {"names": ["pirate"], **counts}, "default": counts}, personas), **changes
    )


def _merged(begun: Personas, more: Personas | None) -> Personas:
    return {kind: begun.get(kind, {}) | (more or {}).get(kind, {}) for kind in {*begun, *(more or {})}}


MORE: dict[str, Personas] = {
    "roles": {"roles": {"names": ["pirate", "poet", "teacher"]}},
    "prompts": {"roles": {"prompts": 3}},
    "questions": {"roles": {"questions": 7}, "default": {"questions": 7}},
    "samples": {"roles": {"samples": 3}},
    "traits": {"traits": {"names": ["anxious"], "prompts": 1, "questions": 3, "questions_from": "own"}},
    "everything": {
        "roles": {"names": ["pirate", "poet"], "prompts": 2, "questions": 3, "samples": 2},
        "traits": {"names": ["anxious"], "prompts": 1, "questions": 2},
        "default": {"prompts": 2, "samples": 3},
    },
}


ANXIOUS: Personas = {"traits": {"names": ["anxious"], "prompts": 1, "questions": 1}}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with a trait besides, for jobs that are refused, so that it stays as it is."""
    url = str(tmp_path_factory.mktemp("begun") / "run")
    work_here(job(url, ANXIOUS))
    return url


def hashes(store_url: str) -> dict[str, str]:
    root = Path(store_url)
    return {
        path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def assert_as_at_once(grown: Run, at_once: Run) -> None:
    """Check that two runs have the same rollouts, whatever units and rows they are in."""
    where = ["row", "unit_id"]
    assert grown.rollouts().drop_columns(where).equals(at_once.rollouts().drop_columns(where))
    for hook_point, pooling in at_once.record.arrays:
        one, other = (
            run.activations(hook_point=hook_point, pooling=pooling, layer="all").values for run in (grown, at_once)
        )
        assert (one == other).all()
    assert grown.completeness.is_complete
    assert verified(grown.location).is_complete


@pytest.mark.parametrize("what", MORE)
def test_a_run_that_grows_becomes_the_run_that_is_planned_at_once(tmp_path: Path, what: str):
    url, at_once = str(tmp_path / "grown"), str(tmp_path / "at-once")
    work_here(job(url))
    before = hashes(url)
    outcome = work_here(job(url, MORE[what]), grow=True)
    assert outcome.is_complete
    assert outcome.worked == outcome.planned - 2
    work_here(job(at_once, MORE[what]))
    assert_as_at_once(open_run(url), open_run(at_once))
    # What is rewritten are caches, the lengths of arrays, and the mark of a run that grows.
    after = hashes(url)
    rewritten = {path for path in before if after.get(path) != before[path]}
    assert {Path(path).name for path in rewritten} <= {"run.json", "zarr.json", "index.parquet", "chunks.parquet"}


def test_a_run_on_any_store_grows_again_and_again(store_url: str, tmp_path: Path):
    work_here(job(store_url))
    opened = open_run(store_url)
    assert opened.completeness.planned == 2
    more = {"roles": {"questions": 3}}
    for personas in (more, _merged(more, {"roles": {"samples": 2}})):
        assert work_here(job(store_url, personas), grow=True).is_complete
    run = open_run(store_url)
    assert [(addition.number, addition.num_rollouts) for addition in run.record.additions] == [(1, 1), (2, 3)]
    assert run.record.num_rollouts == run.index.num_rows == 8
    at_once = str(tmp_path / "at-once")
    work_here(job(at_once, personas))
    assert_as_at_once(run, open_run(at_once))
    # A reader that was open before sees it too.
    assert str(opened.refresh().completeness) == str(run.completeness)
    assert opened.index.equals(run.index)


def test_a_reader_that_loads_its_index_after_the_run_has_grown_knows_how_much_is_planned(tmp_path: Path):
    url = str(tmp_path / "run")
    work_here(job(url))
    opened = open_run(url)
    work_here(job(url, MORE["roles"]), grow=True)
    assert str(opened.completeness) == str(open_run(url).completeness) == "4 of 4 units"


def test_more_is_refused_without_leave_and_the_hint_says_how(begun: str):
    before = hashes(begun)
    with pytest.raises(InputError, match="has 2, the spec says 7") as caught:
        work_here(job(begun, _merged(ANXIOUS, MORE["questions"])))
    error = caught.value
    assert (error.code, error.field) == ("other_run", "personas.default.questions")
    assert "--grow" in (error.hint or "")
    assert "6 units with 10 rollouts" in (error.hint or "")
    assert hashes(begun) == before


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"model": {"source": "other", "name": "Nobody"}}, "model.source", "one model"),
        ({"model": {"source": "none", "name": "Somebody"}}, "model.name", "one model"),
        ({"model": {"source": "none", "name": "Nobody", "dtype": "bfloat16"}}, "model.dtype", "one model"),
        ({"sampling": {"temperature": 0.1}}, "sampling.temperature", "sampled alike"),
        ({"capture": {"layers": [1]}}, "capture.layers", "same layers"),
        ({"capture": {"poolings": ["response_mean", "prompt_last"]}}, "capture.poolings", "same layers"),
        ({"seed": 3}, "seed", "seeds"),
        ({"generation": {"endpoint": "http://127.0.0.1:1/v1"}}, "capture.mode", "same layers"),
    ],
)
def test_what_cannot_change_is_refused_with_the_field_and_the_reason(
    begun: str, changes: dict[str, Any], field: str, said: str
):
    before = hashes(begun)
    with pytest.raises(InputError, match=said) as caught:
        work_here(job(begun, _merged(ANXIOUS, MORE["questions"]), **changes), grow=True)
    assert (caught.value.code, caught.value.field) == ("cannot_grow", field)
    assert hashes(begun) == before


@pytest.mark.parametrize(
    ("personas", "field", "said"),
    [
        ({"roles": {"questions": 1}}, "personas.roles.questions", "question1"),
        ({"roles": {"names": ["poet"]}}, "personas.roles.names", "role/pirate"),
        ({"roles": {"names": []}}, "personas.roles.names", "role/pirate"),
        ({"default": {"prompts": 0}}, "personas.default.prompts", "default/assistant_default"),
        ({"traits": {"questions_from": "own"}}, "personas.traits.questions_from", "would be others"),
    ],
)
def test_fewer_or_other_rollouts_are_refused(begun: str, personas: Personas, field: str, said: str):
    before = hashes(begun)
    more = _merged({"traits": {"names": ["anxious", "humble"], "prompts": 1, "questions": 1}}, personas)
    with pytest.raises(InputError, match=said) as caught:
        work_here(job(begun, more), grow=True)
    assert (caught.value.code, caught.value.field) == ("cannot_grow", field)
    assert hashes(begun) == before


def test_fewer_samples_and_prompts_and_the_spec_from_before_are_refused(tmp_path: Path):
    url = str(tmp_path / "run")
    work_here(job(url, {"roles": {"prompts": 2, "samples": 2}}))
    for personas, field in [({"roles": {"prompts": 2}}, "samples"), ({"roles": {"samples": 2}}, "prompts")]:
        with pytest.raises(InputError, match="not fewer") as caught:
            work_here(job(url, _merged(personas, MORE["traits"])), grow=True)
        assert caught.value.field == f"personas.roles.{field}"
    work_here(job(url, {"roles": {"prompts": 2, "samples": 2, "questions": 3}}), grow=True)
    with pytest.raises(InputError, match="question2/sample0, which is planned") as caught:
        work_here(job(url, {"roles": {"prompts": 2, "samples": 2}}))
    assert (caught.value.code, caught.value.field) == ("other_run", "personas.roles.questions")


def test_another_precision_other_files_or_another_chat_template_are_refused(
    begun: str, monkeypatch: pytest.MonkeyPatch
):
    more = job(begun, _merged(ANXIOUS, MORE["roles"]))
    finer = more.model_copy(update={"store": more.store.model_copy(update={"mantissa_bits": 12})})
    with pytest.raises(InputError, match="same precision") as caught:
        work_here(finer, grow=True)
    assert caught.value.field == "store.mantissa_bits"
    with monkeypatch.context() as others:
        others.setattr("plain_driver.FACTS", replace(FACTS, fingerprint="0" * 64))
        others.setattr(prepare, "earlier_fingerprint", lambda _: "1" * 64)
        with pytest.raises(InputError, match="other files") as caught:
            work_here(more, grow=True)
    assert caught.value.field == "model.source"
    monkeypatch.setattr(prepare, "read_chat_template", lambda _: "another template")
    with pytest.raises(InputError, match="rendered alike") as caught:
        work_here(more, grow=True)
    assert (caught.value.code, caught.value.field) == ("cannot_grow", "model.chat_template")


def with_question(catalog: Catalog, place: int, text: str) -> Catalog:
    questions = list(catalog.questions)
    questions[place : place + 1] = [Question(f"new{place}", text)]
    return replace(catalog, questions=tuple(questions))


def test_a_changed_text_of_what_is_planned_is_refused_by_name_and_one_that_is_not_planned_counts(tmp_path: Path):
    url = str(tmp_path / "run")
    work_here(job(url))
    more, catalog = job(url, MORE["questions"]), load_catalog()
    with pytest.raises(InputError, match="another text for question 1 of default") as caught:
        work_here(more, grow=True, source=PersonaSource(more, with_question(catalog, 1, "Else?")))
    assert (caught.value.code, caught.value.field) == ("cannot_grow", "personas.catalog")

    pirate = replace(catalog.persona("role", "pirate"), prompts=("Say arr.",))
    reworded = replace(catalog, _loaded={("role", "pirate"): pirate})
    with pytest.raises(InputError, match=r"another text for prompt 0 \(pos\) of role 'pirate'"):
        work_here(more, grow=True, source=PersonaSource(more, reworded))

    work_here(more, grow=True, source=PersonaSource(more, with_question(catalog, 5, "Else?")))
    texts = open_run(url).rollouts(persona="pirate")
    assert texts["question"].to_pylist()[5] == "Else?"


def test_a_glob_takes_in_what_the_catalog_has_since(tmp_path: Path):
    url, at_once = str(tmp_path / "run"), str(tmp_path / "at-once")
    spec = job(url, {"roles": {"names": ["pi*"]}})
    whole = load_catalog()
    fewer = replace(whole, files={key: file for key, file in whole.files.items() if key != ("role", "pilgrim")})
    work_here(spec, source=PersonaSource(spec, fewer))
    with pytest.raises(InputError, match="has more than the run") as caught:
        work_here(spec)
    assert (caught.value.code, caught.value.field) == ("other_run", "personas.catalog")
    assert work_here(spec, grow=True).worked == 1
    work_here(job(at_once, {"roles": {"names": ["pi*"]}}))
    assert_as_at_once(open_run(url), open_run(at_once))


def test_there_must_be_a_run_and_words_alone_add_nothing(tmp_path: Path):
    url = str(tmp_path / "run")
    with pytest.raises(InputError, match="no run at") as caught:
        work_here(job(url), grow=True)
    assert caught.value.code == "no_run"
    assert not Path(url).exists()
    work_here(job(url))
    assert work_here(job(url), grow=True).worked == 0
    with pytest.raises(InputError, match="are the same rollouts") as caught:
        work_here(job(url, {"roles": {"names": ["pirate", "pirat?"]}}), grow=True)
    assert (caught.value.code, caught.value.field) == ("cannot_grow", "personas.roles.names")
    assert read_run_record(open_location(url)).additions == ()  # pyright: ignore[reportOptionalMemberAccess]


def test_growing_an_unfinished_run_does_both_and_the_same_command_resumes(tmp_path: Path):
    url = str(tmp_path / "run")
    work_here(job(url))
    location = open_location(url)
    first = sorted(committed_units(location))[0]
    location.delete([layout.commit_path(first)])
    more = job(url, MORE["roles"])
    assert work_here(more, grow=True).worked == 3
    added = sorted(committed_units(location))[-1]
    location.delete([layout.commit_path(added)])
    found = verify_run(location)
    assert (found.units_done, found.units_planned, found.missing) == (3, 4, (added,))
    # The addition is on record, so the run's spec is the larger one, with leave or without.
    assert work_here(more).worked == 1
    location.delete([layout.commit_path(added)])
    assert work_here(more, grow=True).worked == 1
    verified(location)


def test_of_two_jobs_that_were_prepared_to_grow_a_run_the_second_is_refused_and_nothing_is_lost(tmp_path: Path):
    url = str(tmp_path / "run")
    work_here(job(url))
    location = open_location(url)
    location.delete([layout.commit_path(sorted(committed_units(location))[0])])
    first = prepare_here(job(url, MORE["roles"]), grow=True)
    late = [prepare_here(job(url, MORE[what]), grow=True) for what in ("traits", "roles")]
    # One that only wants to finish what there was.
    late.append(prepare_here(job(url)))
    assert first().is_complete
    for second in late:
        before = {path: size for path, size in location.sizes("").items() if not path.startswith(("drivers", "status"))}
        with pytest.raises(InputError, match="has grown by another job") as caught:
            second()
        assert (caught.value.code, caught.value.field) == ("run_has_grown", "store.url")
        after = {path: size for path, size in location.sizes("").items() if not path.startswith(("drivers", "status"))}
        assert after == before
    assert work_here(job(url, _merged(MORE["roles"], MORE["traits"])), grow=True).is_complete
    verified(location)


def test_growing_marks_the_record_so_that_other_versions_refuse_it_and_changes_nothing_else_in_it(tmp_path: Path):
    url = str(tmp_path / "run")
    work_here(job(url))
    location = open_location(url)
    before = json.loads(location.read(layout.RUN_RECORD) or b"")
    begun = read_run_record(location)
    work_here(job(url, MORE["roles"]), grow=True)
    after = json.loads(location.read(layout.RUN_RECORD) or b"")
    assert {name for name in before if before[name] != after[name]} == {"layout_version", "seal"}
    assert list(before) == list(after)
    # Versions that know no additions read layout 2 and no other.
    assert (before["layout_version"], after["layout_version"]) == (2, 3)
    stored = parse_record(RunRecord, location.read(layout.RUN_RECORD) or b"", f"{url}/{layout.RUN_RECORD}")
    assert begun is not None
    assert (stored.spec, stored.num_units, stored.plan_digest) == (begun.spec, begun.num_units, begun.plan_digest)
    # The units of before are those of the first list still.
    grown = read_run_record(location)
    assert grown is not None
    assert list(read_units(location, grown))[:2] == list(read_units(location, stored))


def _cut(data: bytes) -> bytes:
    return data[:-30]


def _of_another_run(data: bytes) -> bytes:
    """An addition whose seal is right, to another plan."""
    from persona_atlas.jobs.specs.spec import digest_of

    body = json.loads(data) | {"grown_from": "0" * 64}
    del body["seal"]
    return json.dumps(body | {"seal": digest_of(body)}).encode()


@pytest.mark.parametrize(
    ("damage", "said"), [(_cut, "damaged or was edited"), (_of_another_run, "not what was added to this run")]
)
def test_an_addition_that_is_damaged_or_of_another_run_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], said: str
):
    url = str(tmp_path / "run")
    work_here(job(url))
    work_here(job(url, MORE["roles"]), grow=True)
    location = open_location(url)
    path = layout.addition_path(1)
    location.write(path, damage(location.read(path) or b""))
    with pytest.raises(StoreError, match=said) as caught:
        open_run(url)
    assert (caught.value.code, (caught.value.file or "").endswith(path)) == ("bad_record", True)


def test_an_addition_that_is_missing_before_another_is_told(tmp_path: Path):
    url = str(tmp_path / "run")
    work_here(job(url))
    work_here(job(url, MORE["roles"]), grow=True)
    work_here(job(url, _merged(MORE["roles"], MORE["traits"])), grow=True)
    open_location(url).delete([layout.addition_path(1)])
    with pytest.raises(StoreError, match="addition 1 of the run is missing"):
        open_run(url)


def test_verify_repair_and_gc_know_what_was_added(tmp_path: Path):
    url = str(tmp_path / "run")
    work_here(job(url))
    more = job(url, MORE["samples"])
    work_here(more, grow=True)
    location, run = open_location(url), open_run(url)
    assert find_garbage(location, []) != []
    assert verify_run(location).garbage_objects == 0
    added = "role.pirate.pos.p0.a1.b0"
    (shard, *_) = (path for path in location.sizes("rollouts") if added in path)
    location.write(shard, b"broken")
    found = verify_run(location)
    assert found.damaged_units == (added,)
    assert repair_run(location, run.record, found.problems).units == (added,)
    assert verify_run(location).missing == (added,)
    assert work_here(more).worked == 1
    # What the damaged attempt left is garbage now, and nothing else is, also for one who opened the run before it grew.
    garbage = find_garbage(location, [], is_complete=True)
    begun = parse_record(RunRecord, location.read(layout.RUN_RECORD) or b"", "run.json")
    assert remove_garbage(location, begun, garbage) == 2
    verified(location)
    assert open_run(url).completeness.is_complete

    list_of_added = layout.units_path(run.record.additions[0].units_sha256)
    location.delete([list_of_added])
    (problem,) = verify_run(location).problems
    assert (problem.kind, problem.path) == ("damage", list_of_added)


def test_appended_conversations_are_an_addition_and_changed_ones_are_refused(tmp_path: Path):
    url, at_once = str(tmp_path / "grown"), str(tmp_path / "at-once")
    talks = [
        conversation("Hi", "Hello", "So?", "So.", index=0),
        conversation("Who?", "Nobody", index=1),
        conversation("When?", "Now", "Why?", "Because", index=2),
        conversation("Where?", "Here", index=3),
    ]

    def spec(store_url: str) -> JobSpec:
        data = {
            "model": {"source": "none"},
            "conversations": {"source": "talks.jsonl"},
            "capture": {"poolings": ["response_mean", "tokens"], "token_layers": [1, 2]},
            "store": {"url": store_url},
        }
        return JobSpec.model_validate(data)

    work_here(spec(url), source=ConversationSource(tuple(talks[:2])))
    before = hashes(url)
    for changed, field in (
        ((conversation("Hi", "Hello!", "So?", "So.", index=0), *talks[1:]), "conversations.source"),
        (tuple(talks[1:]), "conversations.source"),
        (tuple(talks[:1]), "conversations.source"),
    ):
        with pytest.raises(InputError) as caught:
            work_here(spec(url), grow=True, source=ConversationSource(changed))
        assert (caught.value.code, caught.value.field) == ("cannot_grow", field)
    with pytest.raises(InputError, match="has more than the run") as caught:
        work_here(spec(url), source=ConversationSource(tuple(talks)))
    assert caught.value.field == "conversations.source"
    assert hashes(url) == before
    assert work_here(spec(url), grow=True, source=ConversationSource(tuple(talks))).is_complete
    work_here(spec(at_once), source=ConversationSource(tuple(talks)))
    assert_as_at_once(open_run(url), open_run(at_once))
