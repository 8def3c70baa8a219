"""Verify: silent on a good run, and for each damage that is planted the object, the kind and the unit are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.specs.spec_parts import CanarySpec
from persona_atlas.jobs.work.rollouts import Canary
from persona_atlas.storage.derived.reductions import Reduction, write_reduction
from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.parquet import from_parquet, to_parquet
from persona_atlas.storage.format.records import CommitRecord, Manifest, RunRecord, StoredObject
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.chunk_index import read_chunks, write_chunks
from persona_atlas.storage.run.commits import commit_unit, committed_units, read_commit, read_commits
from persona_atlas.storage.run.index import load_index, write_index
from persona_atlas.storage.run.index_keeper import refresh_index
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.run.run_store import reserve_rows
from persona_atlas.storage.verification import verify
from persona_atlas.storage.verification.garbage import remove_garbage
from persona_atlas.storage.verification.verify import Verification, verify_run

from fakes import FakeEngine, small_plan, small_spec
from stored_runs import begin, commit_units, record_of, store_run, write_unit

ARRAYS = (("resid_post", "response_mean"), ("resid_post", "prompt_last"))
UNIT = "role.pirate.pos.p0.b0"
OTHER = "role.poet.pos.p1.b0"
COMMIT = layout.commit_path(UNIT)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan(small_spec(capture={"poolings": ["response_mean", "prompt_last"]}))


@dataclass
class Stored:
    """A stored run, and where its things lie."""

    root: Path
    plan: Plan

    @property
    def location(self) -> Location:
        return open_location(str(self.root))

    def manifest(self, unit_id: str = UNIT) -> Manifest:
        return read_commit(self.location, unit_id).manifest

    def verify(self, *, quick: bool = False) -> Verification:
        return verify_run(self.location, quick=quick)

    def put(self, path: str, data: bytes) -> None:
        (self.root / path).write_bytes(data)

    def get(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def recommit(self, unit_id: str, manifest: Manifest) -> None:
        """Write a record in order by itself, whatever it says."""
        record = CommitRecord.of(manifest, generation=1, committed_at="2026-01-01T00:00:00+00:00")
        self.put(layout.commit_path(unit_id), record.to_bytes())


def write_small_reduction(location: Location) -> None:
    axis = np.ones((4, 16), dtype=np.float32)
    write_reduction(location, Reduction("small", (0, 1, 2, 3), (), (), {}, axis=axis))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Stored:
    """Complete, indexed and reduced, with nothing wrong."""
    root = tmp_path_factory.mktemp("store") / "run"
    location = store_run(str(root), plan, engine=FakeEngine(arrays=ARRAYS))
    refresh_index(location, record_of(plan))
    write_small_reduction(location)
    return Stored(root, plan)


@pytest.fixture
def run(tmp_path: Path, good: Stored) -> Stored:
    shutil.copytree(good.root, tmp_path / "run")
    return Stored(tmp_path / "run", good.plan)


def told(found: Verification) -> list[tuple[str, str, str | None]]:
    """What was found: code, path, unit."""
    assert all(problem.message.endswith(".") for problem in found.problems)
    return [(problem.code, problem.path, problem.unit_id) for problem in found.problems]


def test_a_good_run_is_sound_and_complete_and_every_byte_was_read(store_url: str, plan: Plan):
    location = store_run(store_url, plan, engine=FakeEngine(arrays=ARRAYS))
    refresh_index(location, record_of(plan))
    progress: list[tuple[int, int]] = []
    found = verify_run(location, on_progress=lambda done, total: progress.append((done, total)))
    assert told(found) == []
    assert found.is_sound
    assert found.is_complete
    assert (found.units_done, found.units_planned, found.rollouts, found.missing) == (12, 12, 36, ())
    objects = [stored for c in read_commits(location, sorted(plan.by_id)) for stored in c.manifest.objects]
    assert found.bytes_read == sum(stored.num_bytes for stored in objects)
    assert (found.garbage_objects, found.garbage_bytes) == (0, 0)
    assert progress == [(done, 12) for done in range(1, 13)]


def test_a_run_without_its_conveniences_is_sound(run: Stored):
    for path in (layout.INDEX, layout.CHUNKS):
        (run.root / path).unlink()
    shutil.rmtree(run.root / "analysis")
    found = run.verify()
    assert told(found) == [("stale_index", layout.INDEX, None), ("stale_index", layout.CHUNKS, None)]
    assert found.is_sound
    assert found.is_complete


@given(
    which=st.sampled_from([0, 1, 2]),
    unit=st.sampled_from([UNIT, OTHER]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
@settings(max_examples=15, deadline=None)
def test_a_flipped_bit_anywhere_in_an_object_is_found(
    tmp_path_factory: pytest.TempPathFactory, good: Stored, which: int, unit: str, where: float, bit: int
):
    root = tmp_path_factory.mktemp("flipped") / "run"
    shutil.copytree(good.root, root)
    run = Stored(root, good.plan)
    stored = run.manifest(unit).objects[which]
    data = bytearray(run.get(stored.path))
    data[int(where * len(data))] ^= 1 << bit
    run.put(stored.path, bytes(data))
    found = run.verify()
    assert told(found) == [("bad_object", stored.path, unit)]
    assert not found.is_sound
    assert run.verify(quick=True).is_sound, "its length is right"


@pytest.mark.parametrize("which", [0, 1, 2], ids=["texts", "prompt_last", "response_mean"])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:-1], "bad_object"),
        (lambda data: data + b"x", "bad_object"),
        (lambda _: b"", "bad_object"),
        (lambda _: None, "missing_object"),
    ],
    ids=["truncated", "longer", "empty", "missing"],
)
@pytest.mark.parametrize("quick", [False, True])
def test_an_object_of_another_length_is_found_even_by_a_quick_look(
    run: Stored, which: int, change: Callable[[bytes], bytes | None], code: str, quick: bool
):
    path = run.manifest().objects[which].path
    data = change(run.get(path))
    if data is None:
        (run.root / path).unlink()
    else:
        run.put(path, data)
    found = run.verify(quick=quick)
    assert told(found) == [(code, path, UNIT)]
    assert found.is_complete, "damage is not absence"


@pytest.mark.parametrize("which", [0, 1])
def test_objects_swapped_between_two_units_are_found_in_both(run: Stored, which: int):
    ours, theirs = (run.manifest(unit).objects[which].path for unit in (UNIT, OTHER))
    first, second = run.get(ours), run.get(theirs)
    run.put(ours, second)
    run.put(theirs, first)
    assert set(told(run.verify())) == {("bad_object", ours, UNIT), ("bad_object", theirs, OTHER)}


FIELDS: list[tuple[str | int, ...]] = [
    ("generation",),
    ("committed_at",),
    ("seal",),
    ("manifest", "attempt"),
    ("manifest", "row_block"),
    ("manifest", "worker"),
    ("manifest", "seconds"),
    ("manifest", "unit", "persona"),
    ("manifest", "unit", "prompt_index"),
    ("manifest", "content_tokens", 0),
    ("manifest", "finish_reasons", 1),
    ("manifest", "texts", "sha256"),
    ("manifest", "texts", "num_bytes"),
    ("manifest", "blocks", 1, "path"),
    ("manifest", "blocks", 1, "chunk_bytes", 2),
]


def another(value: Any) -> Any:
    """A value of the same kind that could stand there, too."""
    if isinstance(value, str):
        return "length" if value == "stop" else value[:-1] + ("1" if value.endswith("0") else "0")
    return value + 1


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)))
@pytest.mark.parametrize("quick", [False, True])
def test_a_commit_record_edited_in_any_field_is_found(run: Stored, place: tuple[str | int, ...], quick: bool):
    record: Any = json.loads(run.get(COMMIT))
    inner: Any = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = another(inner[place[-1]])
    run.put(COMMIT, json.dumps(record).encode())
    found = run.verify(quick=quick)
    assert ("bad_record", COMMIT, UNIT) in told(found)
    assert {problem.code for problem in found.problems} == {"bad_record"}
    assert not found.is_sound


def test_a_commit_record_that_is_cut_is_found(run: Stored):
    run.put(COMMIT, run.get(COMMIT)[:-20])
    assert ("bad_record", COMMIT, UNIT) in told(run.verify())


def test_a_commit_under_another_units_name_is_found(run: Stored):
    run.put(layout.commit_path(OTHER), run.get(COMMIT))
    found = run.verify()
    assert ("wrong_unit", layout.commit_path(OTHER), OTHER) in told(found)
    assert not found.is_sound


def test_a_commit_of_a_unit_that_was_never_planned_is_found(run: Stored):
    stranger = "role.nobody.pos.p0.b0"
    manifest = run.manifest()
    unit = replace(manifest.unit, unit_id=stranger, persona="nobody")
    run.recommit(stranger, manifest.model_copy(update={"unit": unit}))
    (problem,) = [p for p in run.verify().problems if p.code == "wrong_unit"]
    assert (problem.path, problem.unit_id) == (layout.commit_path(stranger), stranger)
    assert "never planned" in problem.message


def test_two_commits_that_name_one_row_block_are_found(run: Stored):
    ours, theirs = run.manifest(UNIT), run.manifest(OTHER)
    objects = {"row_block": ours.row_block, "blocks": ours.blocks}
    run.recommit(OTHER, theirs.model_copy(update=objects))
    assert ("shared_row_block", layout.commit_path(OTHER), OTHER) in told(run.verify())


@pytest.mark.parametrize("left_out", ["block", "texts"])
def test_a_commit_that_names_other_objects_than_its_own_is_found(run: Stored, left_out: str):
    manifest, theirs = run.manifest(), run.manifest(OTHER)
    changes = {"blocks": manifest.blocks[:1]} if left_out == "block" else {"texts": theirs.texts}
    run.recommit(UNIT, manifest.model_copy(update=changes))
    assert ("wrong_objects", COMMIT, UNIT) in told(run.verify(quick=True))


def rewritten_texts(run: Stored, change: Callable[[list[dict[str, Any]]], None]) -> str:
    """Change the texts of the unit and commit the changed ones, checksum and all; gives their path."""
    manifest = run.manifest()
    path = manifest.texts.path
    table = from_parquet(run.get(path))
    lines = table.to_pylist()
    change(lines)
    data = to_parquet(pa.Table.from_pylist(lines, schema=table.schema))
    run.put(path, data)
    run.recommit(UNIT, manifest.model_copy(update={"texts": StoredObject.of(path, data)}))
    return path


def another_row(lines: list[dict[str, Any]]) -> None:
    lines[0]["row"] += 1


def another_question(lines: list[dict[str, Any]]) -> None:
    lines[1]["question_index"] = 77


def another_order(lines: list[dict[str, Any]]) -> None:
    lines.reverse()


def a_line_less(lines: list[dict[str, Any]]) -> None:
    lines.pop()


def another_count(lines: list[dict[str, Any]]) -> None:
    lines[2]["num_content_tokens"] += 1


def a_prompt_token_more(lines: list[dict[str, Any]]) -> None:
    lines[0]["prompt_token_ids"] = [*lines[0]["prompt_token_ids"], 9]


def a_shorter_response(lines: list[dict[str, Any]]) -> None:
    lines[0]["response_token_ids"] = lines[0]["response_token_ids"][:1]


@pytest.mark.parametrize(
    "change",
    [
        another_row,
        another_question,
        another_order,
        a_line_less,
        another_count,
        a_prompt_token_more,
        a_shorter_response,
    ],
)
def test_texts_that_contradict_their_commit_or_themselves_are_found(
    run: Stored, change: Callable[[list[dict[str, Any]]], None]
):
    path = rewritten_texts(run, change)
    assert ("wrong_content", path, UNIT) in told(run.verify())


def test_numbers_that_are_missing_or_too_many_are_found(run: Stored):
    """The object is as committed, but the commit says other lengths of responses than the numbers do."""
    manifest = run.manifest()
    run.recommit(UNIT, manifest.model_copy(update={"content_tokens": (0, 3, 3)}))
    means = [stored.path for stored in manifest.blocks if stored.pooling == "response_mean"]
    found = [problem for problem in run.verify().problems if problem.path in means]
    assert {problem.code for problem in found} == {"wrong_content"}
    assert "has numbers where there was nothing to pool" in found[0].message


def test_a_commit_that_says_wrongly_where_layers_lie_is_found(run: Stored):
    manifest = run.manifest()
    first, *rest = manifest.blocks
    a, b, *more = first.chunk_bytes
    moved = first.model_copy(update={"chunk_bytes": (a + 1, b - 1, *more)})
    run.recommit(UNIT, manifest.model_copy(update={"blocks": (moved, *rest)}))
    assert ("wrong_content", first.path, UNIT) in told(run.verify())


def test_a_stale_index_is_a_lag_and_no_damage(tmp_path: Path, plan: Plan):
    location = store_run(str(tmp_path / "run"), plan, engine=FakeEngine(arrays=ARRAYS), leave_out=[OTHER])
    refresh_index(location, record_of(plan))
    with acquire(location, 1) as lease:
        reserve_rows(location, record_of(plan), lease.row_blocks.stop)
        engine = FakeEngine(arrays=ARRAYS)
        commit_unit(location, lease, write_unit(location, plan, OTHER, lease.row_blocks[0], engine))
    found = verify_run(location)
    assert [(problem.kind, problem.code, problem.path) for problem in found.problems] == [
        ("lag", "stale_index", layout.INDEX),
        ("lag", "stale_index", layout.CHUNKS),
    ]
    assert "1 committed unit" in found.problems[0].message
    assert found.is_sound
    assert found.is_complete


def test_a_unit_that_is_committed_while_it_looks_is_no_damage(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    """A driver commits a unit and writes the index between any two of its looks."""
    root = tmp_path / "run"
    location = store_run(str(root), plan, engine=FakeEngine(arrays=ARRAYS), leave_out=[OTHER], uncommitted=False)
    refresh_index(location, record_of(plan))
    listed = 0

    def meanwhile(asked: Location) -> set[str]:
        nonlocal listed
        listed += 1
        before = committed_units(asked)
        commit_units(str(root), plan, [OTHER], FakeEngine(arrays=ARRAYS))
        refresh_index(location, record_of(plan))
        return before if at == "after" else committed_units(asked)

    monkeypatch.setattr(verify, "committed_units", meanwhile)
    for at in ("before", "after"):
        location.delete([layout.commit_path(OTHER), layout.INDEX, layout.CHUNKS])
        refresh_index(location, record_of(plan))
        found = verify_run(location)
        assert found.is_sound, found.problems
        assert {problem.code for problem in found.problems} <= {"stale_index"}
        assert found.units_done == (12 if at == "before" else 11)
    assert listed == 2


def test_a_record_that_counts_other_units_than_the_list_has_is_found(run: Stored):
    body = {name: getattr(record_of(run.plan), name) for name in RunRecord.model_fields if name != "seal"}
    run.put(layout.RUN_RECORD, RunRecord.sealed(**body | {"num_units": 13}).to_bytes())
    assert ("wrong_count", layout.RUN_RECORD, None) in told(run.verify())


def test_scores_that_cannot_be_read_are_found(run: Stored):
    write_scores(run.location, "kind", UNIT, [0], [1.0])
    assert run.verify().problems == []
    path = layout.scores_path("kind", UNIT)
    run.put(path, run.get(path)[:-9])
    record = layout.judge_path("kind")
    run.put(record, b"{}")
    assert sorted(told(run.verify())) == [("bad_object", path, None), ("bad_record", record, None)]


def test_a_wrong_line_in_the_index_is_found(run: Stored):
    record = record_of(run.plan)
    lines = load_index(run.location, record).table.to_pylist()
    lines[5]["row"] += 1
    table = load_index(run.location, record).table
    write_index(run.location, record, pa.Table.from_pylist(lines, schema=table.schema))
    assert told(run.verify()) == [("wrong_index", layout.INDEX, None)]


def test_a_commit_record_that_was_deleted_so_that_its_unit_is_done_again_is_no_damage(run: Stored):
    (run.root / COMMIT).unlink()
    found = run.verify()
    assert told(found) == [("index_ahead", layout.INDEX, None)]
    assert (found.is_sound, found.missing) == (True, (UNIT,))
    assert (found.garbage_objects, found.units_done) == (3, 11)


def test_an_index_that_knows_a_unit_that_was_never_planned_is_found(run: Stored):
    record = record_of(run.plan)
    table = load_index(run.location, record).table
    lines = [line | {"unit_id": "role.nobody.pos.p0.b0"} for line in table.to_pylist()[:1]]
    stranger = pa.Table.from_pylist(lines, schema=table.schema)
    write_index(run.location, record, pa.concat_tables([table, stranger]))
    assert told(run.verify()) == [("wrong_index", layout.INDEX, None)]


def test_a_wrong_line_in_the_table_of_chunks_is_found(run: Stored):
    table = read_chunks(run.location)
    lines = table.to_pylist()
    lines[3]["chunk_bytes"][0] += 1
    write_chunks(run.location, pa.Table.from_pylist(lines, schema=table.schema))
    assert told(run.verify()) == [("wrong_index", layout.CHUNKS, None)]


@pytest.mark.parametrize("data", [None, b"", b"PAR1"])
def test_a_damaged_list_of_units_is_found_and_the_rest_checked_all_the_same(run: Stored, data: bytes | None):
    path = layout.units_path(record_of(run.plan).units_sha256)
    if data is None:
        (run.root / path).unlink()
    else:
        run.put(path, data)
    missing = run.manifest().texts.path
    (run.root / missing).unlink()
    found = run.verify()
    assert told(found) == [("bad_object", path, None), ("missing_object", missing, UNIT)]
    assert (found.units_done, found.units_planned) == (12, 12)


def no_json(_: bytes) -> bytes | None:
    return b"{"


def gone(_: bytes) -> bytes | None:
    return None


def with_field(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | {name: value}).encode()


@pytest.mark.parametrize(
    "change",
    [
        no_json,
        gone,
        with_field("fill_value", 0.0),
        with_field("data_type", "float64"),
        with_field("attributes", {"layers": [3, 2, 1, 0], "mantissa_bits": 10}),
        with_field("attributes", {}),
    ],
    ids=["no_json", "gone", "filled_with_zero", "float64", "other_layers", "no_attributes"],
)
def test_damaged_metadata_of_an_array_is_found(run: Stored, change: Callable[[bytes], bytes | None]):
    path = f"{layout.array_path(*ARRAYS[0])}/zarr.json"
    data = change(run.get(path))
    if data is None:
        (run.root / path).unlink()
    else:
        run.put(path, data)
    assert told(run.verify()) == [("bad_array", path, None)]


def test_an_array_that_ends_too_early_is_a_lag_and_gc_lengthens_it(run: Stored):
    path = f"{layout.array_path(*ARRAYS[0])}/zarr.json"
    run.put(path, with_field("shape", [1, 4, 16])(run.get(path)))
    found = run.verify()
    assert (told(found), found.is_sound) == ([("short_array", path, None)], True)
    remove_garbage(run.location, record_of(run.plan), [])
    assert run.verify().problems == []


def test_a_damaged_reduction_is_found(run: Stored):
    (chunk,) = [path for path in run.root.glob("analysis/small-*/axis/c/**/*") if path.is_file()]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    ((code, path, _),) = told(run.verify())
    assert code == "bad_reduction"
    assert (run.root / path).is_dir()
    run.put(layout.CURRENT_REDUCTION, b"{}")
    assert told(run.verify()) == [("bad_reduction", layout.CURRENT_REDUCTION, None)]


def test_missing_units_are_listed_in_the_plans_order_and_are_no_damage(tmp_path: Path, plan: Plan):
    left_out = [unit.unit_id for unit in plan.units][7:2:-2]
    location = store_run(str(tmp_path / "run"), plan, engine=FakeEngine(arrays=ARRAYS), leave_out=left_out)
    found = verify_run(location)
    assert found.missing == tuple(unit.unit_id for unit in plan.units if unit.unit_id in left_out)
    assert len(found.missing) == 3
    assert (found.units_done, found.units_planned) == (9, 12)
    assert found.is_sound
    assert not found.is_complete
    assert found.garbage_objects == 3 * 3
    assert found.garbage_bytes > 0


def test_empty_responses_are_in_order(tmp_path: Path, plan: Plan):
    """One empty in a unit, and a unit of nothing else: its response pooling has no object at all."""
    response_only = small_plan()
    addresses = {unit.unit_id: list(unit.addresses()) for unit in response_only.units}
    empty = frozenset([*addresses[UNIT], addresses[OTHER][1]])
    location = store_run(str(tmp_path / "run"), response_only, engine=FakeEngine(empty=empty))
    refresh_index(location, record_of(response_only))
    assert told(verify_run(location)) == []
    assert read_commit(location, UNIT).manifest.blocks == ()
    assert told(verify_run(location, quick=True)) == []


def with_canary(run: Stored, unit_id: str, canary: Canary | None, rule: CanarySpec | None = None) -> None:
    """Change a unit's canary; without a rule the record is like those from before there was a choice."""
    run.recommit(unit_id, run.manifest(unit_id).model_copy(update={"canary": canary, "canary_rule": rule}))


def test_canaries_are_counted_and_their_worst_error_told(run: Stored):
    with_canary(run, UNIT, Canary(1, (1e-4, 3e-3, 1e-5, 0.0), (1.0,) * 4))
    with_canary(run, OTHER, Canary(1, (1e-4, 2e-3, 1e-5, 0.0), (1.0,) * 4))
    found = run.verify()
    assert told(found) == []
    # Ten units are compared at two rollouts each, as a worker's first.
    assert (found.canaries, found.canary_rollouts, found.worst_relative_error) == (12, 22, 3e-3)


def test_a_unit_of_which_nothing_was_held_against_a_plain_pass_is_found(run: Stored):
    with_canary(run, UNIT, None)
    found = run.verify(quick=True)
    assert told(found) == [("no_canary", COMMIT, UNIT)]
    assert found.canaries == 11


def test_a_unit_must_have_the_canaries_that_its_rule_chooses(run: Stored):
    errors, cosines = (1e-4,) * 4, (1.0,) * 4
    with_canary(run, UNIT, None, CanarySpec(one_in=10**9))
    assert told(run.verify(quick=True)) == []
    with_canary(run, UNIT, Canary(3, errors, cosines, (0, 1, 2)), CanarySpec(one_in=1))
    assert told(run.verify(quick=True)) == []
    for canary in (None, Canary(2, errors, cosines, (0, 2))):
        with_canary(run, UNIT, canary, CanarySpec(one_in=1))
        assert told(run.verify(quick=True)) == [("no_canary", COMMIT, UNIT)]
    with_canary(run, UNIT, None, CanarySpec(check="every_unit", one_in=10**9))
    assert told(run.verify(quick=True)) == [("no_canary", COMMIT, UNIT)]


def test_units_that_nobody_checked_are_counted_and_are_no_damage(run: Stored):
    with_canary(run, UNIT, None, CanarySpec(check="none"))
    found = run.verify(quick=True)
    assert (told(found), found.canaries, found.unchecked_units) == ([], 11, 1)


def test_the_tolerance_of_a_job_is_that_of_its_units(run: Stored):
    canary = Canary(3, (1e-4, 2e-1, 1e-5, 0.0), (1.0,) * 4, (0, 1, 2))
    with_canary(run, UNIT, canary, CanarySpec(tolerance=0.3))
    assert told(run.verify(quick=True)) == []
    with_canary(run, UNIT, canary, CanarySpec(tolerance=0.1))
    assert told(run.verify(quick=True)) == [("bad_canary", COMMIT, UNIT)]


def test_canaries_above_the_limit_that_the_job_kept_are_counted_and_are_no_damage(run: Stored):
    canary = Canary(3, (1e-4, 2e-1, 1e-5, 0.0), (1.0,) * 4, (0, 1, 2), num_above=2)
    with_canary(run, UNIT, canary, CanarySpec(action="warn"))
    found = run.verify(quick=True)
    assert (told(found), found.canaries_above) == ([], 2)
    assert run.manifest(UNIT).canary == canary
    with_canary(run, UNIT, replace(canary, relative_error_L=(1e-4, 5.0, 1e-5, 0.0)), CanarySpec(action="warn"))
    assert told(run.verify(quick=True)) == [("bad_canary", COMMIT, UNIT)]
    with_canary(run, UNIT, canary, CanarySpec(action="fail"))
    assert told(run.verify(quick=True)) == [("bad_canary", COMMIT, UNIT)]


@pytest.mark.parametrize(
    ("errors", "what"),
    [((1e-4, 2e-1, 1e-5, 0.0), "by 2.0e-01 of its norm"), ((1e-4, 1e-4, 1e-4), "not of the run's layers")],
)
def test_a_canary_that_proves_the_contrary_is_found(run: Stored, errors: tuple[float, ...], what: str):
    with_canary(run, UNIT, Canary(1, errors, (1.0,) * len(errors)))
    found = run.verify(quick=True)
    assert told(found) == [("bad_canary", COMMIT, UNIT)]
    assert what in found.problems[0].message
    assert not found.is_sound


def test_damage_is_found_wherever_the_run_is(store_url: str, plan: Plan):
    location = store_run(store_url, plan, engine=FakeEngine(arrays=ARRAYS))
    texts, block, *_ = read_commit(location, UNIT).manifest.objects
    location.delete([texts.path])
    location.write(block.path, (location.read(block.path) or b"")[:-1] + b"x")
    metadata = f"{layout.array_path(*ARRAYS[0])}/zarr.json"
    location.delete([metadata])
    assert set(told(verify_run(location))) == {
        ("missing_object", texts.path, UNIT),
        ("bad_object", block.path, UNIT),
        ("bad_array", metadata, None),
        ("stale_index", layout.INDEX, None),
        ("stale_index", layout.CHUNKS, None),
    }
    assert committed_units(location) == set(plan.by_id)


def test_verifying_writes_nothing(good: Stored):
    def contents() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in good.root.rglob("*")}

    before = contents()
    good.verify()
    good.verify(quick=True)
    assert contents() == before


def test_what_is_no_run_cannot_be_verified(tmp_path: Path, plan: Plan):
    with pytest.raises(InputError) as caught:
        verify_run(open_location(str(tmp_path / "nothing")))
    assert caught.value.code == "no_run"
    location = open_location(str(tmp_path / "run"))
    with acquire(location, 1) as lease:
        begin(location, plan, lease)
    found = verify_run(location)
    assert (found.units_done, len(found.missing), found.problems) == (0, 12, [])
    location.write(layout.RUN_RECORD, b"{")
    with pytest.raises(StoreError):
        verify_run(location)


def test_texts_that_are_no_parquet_are_found_and_the_rest_checked_all_the_same(run: Stored):
    commit = read_commit(run.location, UNIT)
    data = b"not a table"
    texts = StoredObject.of(commit.manifest.texts.path, data)
    run.put(texts.path, data)
    sealed = CommitRecord.of(commit.manifest.model_copy(update={"texts": texts}), generation=1, committed_at="now")
    run.put(COMMIT, sealed.to_bytes())
    assert ("wrong_content", texts.path, UNIT) in told(run.verify())
    with pytest.raises(StoreError, match="no Parquet file"):
        open_run(run.location.url).rollouts()


def test_a_table_of_chunks_that_is_gone_is_a_lag_and_gc_makes_it_anew(run: Stored, plan: Plan):
    run.location.delete([layout.CHUNKS])
    found = run.verify()
    assert found.is_sound
    assert ("stale_index", layout.CHUNKS, None) in told(found)
    remove_garbage(run.location, record_of(plan), [])
    assert run.verify().problems == []
