"""Stores that version 0.1.0 wrote still open, verify and resume, and give the numbers and texts that they gave then.

Whoever has a store is never asked to write it again. So two small ones are kept under ``data/stores`` as that version
wrote them, each with one unit missing, together with what the same version made of them when it resumed. Every test
works on a copy. Never write the stores anew to make a test pass: their README says why.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from persona_atlas import open_run
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.pool.worker_loop import WorkerLoop
from persona_atlas.cluster.run.backend import Backend, worker_settings
from persona_atlas.cluster.run.job import Outcome, work_job
from persona_atlas.cluster.run.prepare import Job, plan_job, prepare_job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.status_reporter import StatusReporter
from persona_atlas.jobs.scheduling.job_state import JobState
from persona_atlas.jobs.specs.spec import JobSpec, load_spec
from persona_atlas.storage.arrays.codec import encode_shard
from persona_atlas.storage.format.layout import driver_path
from persona_atlas.storage.format.planned_units import encode_units, read_units
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import Run
from persona_atlas.storage.run.commits import committed_units, read_commits
from persona_atlas.storage.run.lease import HeldLease, newest_lease
from persona_atlas.storage.run.status import read_status
from persona_atlas.storage.verification.verify import verify_run
from persona_atlas.workers.chat.spans import load_renderer
from rich.console import Console

from local_executor import LocalExecutor

STORES = Path(__file__).parent / "data" / "stores"
PROGRESS = Progress(Console(file=io.StringIO()))


@dataclass(frozen=True)
class OldStore:
    """A copy of a store, and what the version that wrote it made of it.

    Attributes:
        spec: The job, read today.
        expected: What is in ``expected.json``: digests, ids, every rollout, the hash of every object.
        numbers: What is in ``expected.npz``: the values of each array, as a query of the finished run gave them.
    """

    spec: JobSpec
    expected: dict[str, Any]
    numbers: dict[str, np.ndarray]

    @property
    def root(self) -> Path:
        return Path(self.spec.store.url)

    @property
    def location(self) -> Location:
        return open_location(self.spec.store.url)

    @property
    def committed(self) -> set[str]:
        return set(self.expected["unit_ids"]) - {self.expected["left_out"]}

    def rollouts(self, units: Collection[str]) -> list[dict[str, Any]]:
        """Every rollout of some units, all columns, in address order."""
        return [line for line in self.expected["rollouts"] if line["unit_id"] in units]

    def vectors(self, hook_point: str, pooling: str, units: Collection[str]) -> list[np.ndarray]:
        """The numbers of those of them that have any, one array a rollout."""
        name = f"{hook_point}:{pooling}"
        offsets = self.numbers.get(f"{name}:offsets")
        values = self.numbers[name]
        each = list(values) if offsets is None else np.split(values, offsets[1:-1])
        lines = [line for line in self.expected["rollouts"] if line["has_vector"]]
        return [found for line, found in zip(lines, each, strict=True) if line["unit_id"] in units]

    def is_written_with(self, *packages: str) -> bool:
        """Whether these are as they were then: another version of theirs may pack the same numbers into other bytes."""
        return all(version(package) == self.expected["written_with"][package] for package in packages)


@pytest.fixture(params=["personas", "conversations"])
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OldStore:
    return old_store(request.param, tmp_path, monkeypatch)


@pytest.fixture
def old_personas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OldStore:
    return old_store("personas", tmp_path, monkeypatch)


def old_store(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OldStore:
    shutil.copytree(STORES, tmp_path / "stores")
    # The name of the model is part of what a run is, and it is a relative one.
    monkeypatch.chdir(tmp_path / "stores")
    with np.load(f"{name}/expected.npz") as file:
        numbers = dict(file)
    return OldStore(load_spec(f"{name}/job.yaml"), json.loads(Path(f"{name}/expected.json").read_text()), numbers)


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every object under a folder, by its path there."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def work(spec: JobSpec, *, grow: bool = False) -> Outcome:
    """Begin a job or go on with it as on this machine, with the real engine in this process instead of Ray."""
    with StatusReporter() as reporter:
        return work_job(prepare_job(spec, PROGRESS, grow=grow), PROGRESS, reporter, open_backend=in_this_process)


@contextmanager
def in_this_process(job: Job, _progress: Progress) -> Iterator[Backend]:
    def make_executor(lease: HeldLease) -> LocalExecutor:
        settings = worker_settings(job, Placement(1, "cpu", 1, 0), driver_path(lease.generation))
        return LocalExecutor(WorkerLoop(settings, "local"))

    yield Backend(load_renderer(job.model_directory).renderer.describe(), make_executor)


def assert_reads_exactly(run: Run, old: OldStore, units: Collection[str]) -> None:
    """All that a reader is told of some units is what it was told then, to the last bit."""
    assert [line for line in run.rollouts().to_pylist() if line["unit_id"] in units] == old.rollouts(units)
    for hook_point, pooling in run.record.arrays:
        found = run.activations(hook_point=hook_point, pooling=pooling, layer="all")
        of_units = [unit_id in units for unit_id in found.rollouts["unit_id"].to_pylist()]
        values = [value for value, is_wanted in zip(found.per_rollout(), of_units, strict=True) if is_wanted]
        expected = old.vectors(hook_point, pooling, units)
        assert len(values) == len(expected) > 0
        for value, then in zip(values, expected, strict=True):
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, then, f"{hook_point}/{pooling}")


def test_the_plan_made_today_is_the_one_made_then(old: OldStore):
    plan, _ = plan_job(old.spec, PROGRESS)
    assert plan.facts.fingerprint == old.expected["fingerprint"]
    assert old.spec.digest == old.expected["spec_digest"]
    assert plan.digest == old.expected["plan_digest"]
    assert [unit.unit_id for unit in plan.units] == old.expected["unit_ids"]
    planned = {
        (request.address, unit.unit_id, request.seed, request.system_prompt, request.question)
        for unit in plan.units
        for request in plan.requests(unit).first(unit)
    }
    texts = ("unit_id", "seed", "system_prompt", "question")
    address = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
    expected = {
        ((*(line[name] for name in address), line.get("turn_index")), *(line[name] for name in texts))
        for line in old.expected["rollouts"]
    }
    assert {((*(getattr(at, name) for name in address), at.turn_index), *rest) for at, *rest in planned} == expected
    assert len(expected) == plan.num_rollouts == len(old.expected["rollouts"])


def test_the_list_of_units_and_the_records_of_then_are_understood(old: OldStore):
    plan, directory = plan_job(old.spec, PROGRESS)
    record = open_run(old.spec.store.url).record
    assert record.plan_digest == plan.digest
    assert record.spec == old.spec
    assert (record.model, record.layers, record.token_layers) == (plan.facts, plan.layers, plan.token_layers)
    assert (record.rows_per_block, record.tokens_per_block) == (plan.rows_per_block, plan.tokens_per_block)
    assert record.rendering == load_renderer(directory).renderer.describe()
    assert list(read_units(old.location, record).values()) == list(plan.units)
    if old.is_written_with("pyarrow"):
        assert sha256(encode_units(plan.units)).hexdigest() == record.units_sha256

    assert committed_units(old.location) == old.committed
    for commit in read_commits(old.location, sorted(old.committed)):
        manifest = commit.manifest
        lines = sorted(old.rollouts({manifest.unit_id}), key=lambda line: line["row"])
        assert manifest.unit == plan.by_id[manifest.unit_id]
        assert (commit.generation, manifest.attempt, manifest.worker) == (1, 1, "local")
        assert manifest.row_block * plan.rows_per_block == lines[0]["row"]
        assert list(manifest.prompt_tokens) == [len(line["prompt_token_ids"]) for line in lines]
        assert list(manifest.content_tokens) == [line["num_content_tokens"] for line in lines]
        assert list(manifest.finish_reasons) == [line["finish_reason"] for line in lines]
        assert {thing.path: thing.sha256 for thing in manifest.objects}.items() <= old.expected["objects"].items()

    lease, status = newest_lease(old.location), read_status(old.location, 1)
    assert lease is not None
    assert lease.released
    assert status is not None
    assert status.state == JobState.CANCELLED


def test_committed_units_read_as_they_did_and_reading_changes_nothing(old: OldStore):
    run = open_run(old.spec.store.url)
    assert str(run.completeness) == f"{len(old.committed)} of {len(old.expected['unit_ids'])} units"
    assert run.committed == old.committed
    assert_reads_exactly(run, old, old.committed)
    assert run.rollouts().num_rows == len(old.rollouts(old.committed))
    assert hashes(old.root) == old.expected["objects"]


def test_verify_finds_no_damage(old: OldStore):
    found = verify_run(old.location)
    assert found.problems == []
    assert found.missing == (old.expected["left_out"],)
    assert (found.units_done, found.canaries) == (len(old.committed), len(old.committed))
    assert found.rollouts == len(old.rollouts(old.committed))
    assert hashes(old.root) == old.expected["objects"]


def test_the_same_numbers_are_packed_into_the_same_bytes(old: OldStore):
    # Whatever the processor: no model runs here.
    if not old.is_written_with("numcodecs"):
        pytest.skip("another numcodecs may compress otherwise")
    bits = old.spec.store.mantissa_bits
    packed = 0
    for commit in read_commits(old.location, sorted(old.committed)):
        manifest = commit.manifest
        for block in manifest.blocks:
            path = f"activations/{block.hook_point}/{block.pooling}"
            array: Any = zarr.open_array(old.root, path=path, mode="r")
            count = manifest.num_response_tokens if block.pooling == "tokens" else manifest.num_rows
            first = manifest.row_block * array.shards[0]
            encoded = encode_shard(array[first : first + count], array.shards[0], bits, array.chunks[0])
            assert encoded is not None
            assert (sha256(encoded.data).hexdigest(), encoded.chunk_bytes) == (block.sha256, block.chunk_bytes)
            packed += 1
    assert packed == len(old.committed) * len(open_run(old.spec.store.url).record.arrays)


def test_resuming_does_the_missing_unit_and_nothing_else(old: OldStore):
    left_out: str = old.expected["left_out"]
    assert prepare_job(old.spec, PROGRESS).committed == old.committed
    assert hashes(old.root) == old.expected["objects"], "preparing writes nothing"
    outcome = work(old.spec)
    assert (outcome.worked, outcome.done, outcome.planned) == (1, len(old.committed) + 1, len(old.committed) + 1)

    before: dict[str, str] = old.expected["objects"]
    rewritten: dict[str, str] = old.expected["rewritten"]
    after = hashes(old.root)
    # The arrays are lengthened and the index has the new unit; of what else was there not a byte differs.
    assert {path for path in before if after.get(path) != before[path]} == rewritten.keys()
    assert {Path(path).name for path in rewritten} == {"zarr.json", "index.parquet", "chunks.parquet"}
    # What the driver keeps of itself may become more.
    added = {path for path in after.keys() - before.keys() if not path.startswith(("drivers/", "status/"))}
    assert added == {*old.expected["added"], f"commits/{left_out}.json"}
    assert json.loads((old.root / "commits" / f"{left_out}.json").read_text())["generation"] == 2

    run = open_run(old.spec.store.url)
    assert run.completeness.is_complete
    assert_reads_exactly(run, old, old.committed)
    is_same = assert_made_as_then(run, old, {left_out})
    assert run.rollouts().to_pylist() == old.expected["rollouts"]
    columns = run.index.column_names
    assert run.index.to_pylist() == [{name: line[name] for name in columns} for line in old.expected["rollouts"]]
    made = old.expected["added"] | rewritten
    # Where a number differs its chunk does, and so may the table of the chunks' lengths; the texts have no part in it.
    exact = [path for path in made if is_same or path.startswith("rollouts/")]
    if old.is_written_with("numcodecs", "pyarrow", "zarr"):
        assert {path: after[path] for path in exact} == {path: made[path] for path in exact}
    found = verify_run(old.location)
    assert (found.problems, found.missing) == ([], ())


def assert_made_as_then(run: Run, old: OldStore, units: Collection[str]) -> bool:
    """Hold new numbers of some units against the old; says whether all are the same to the last bit.

    On the processor that wrote the stores they are. Another one may add up in another order, and what differs by one in
    ten million ends now and then on the other side of where the mantissa is cut: of ten bits a step is a thousandth.
    So a few numbers may differ by that, and none by more.
    """
    rounded_away = np.uint32(2 ** (23 - old.spec.store.mantissa_bits) - 1)
    is_same = True
    for hook_point, pooling in run.record.arrays:
        found = run.activations(hook_point=hook_point, pooling=pooling, layer="all")
        made = [unit_id in units for unit_id in found.rollouts["unit_id"].to_pylist()]
        values = np.array([x for part, is_made in zip(found.per_rollout(), made, strict=True) if is_made for x in part])
        then = np.array([x for part in old.vectors(hook_point, pooling, units) for x in part])
        assert len(then) > 0
        assert not (values.view(np.uint32) & rounded_away).any(), "kept with the precision of the run"
        np.testing.assert_allclose(values, then, rtol=1e-3, atol=1e-5 * np.abs(then).max())
        assert np.mean(values == then) > 0.95, "more than a processor's rounding"
        is_same = is_same and np.array_equal(values, then)
    return is_same


def test_a_run_begun_today_is_made_as_then(old: OldStore, tmp_path: Path):
    spec = load_spec(old.root.parent / "job.yaml", [f"store.url={tmp_path / 'today'}"])
    assert work(spec).is_complete
    run = open_run(spec.store.url)
    # Where the unit that was missing lies is another matter: it had to wait for another driver then.
    texts = [{name: value for name, value in line.items() if name != "row"} for line in old.expected["rollouts"]]
    assert run.rollouts().drop_columns("row").to_pylist() == texts
    is_same = assert_made_as_then(run, old, old.expected["unit_ids"])
    if is_same and old.is_written_with("numcodecs", "pyarrow"):
        of_attempts = {
            path: made
            for path, made in old.expected["objects"].items()
            if path.startswith(("rollouts/", "units-")) or ("/c/" in path and path.startswith("activations/"))
        }
        assert of_attempts.items() <= hashes(tmp_path / "today").items()


def test_a_resumed_run_is_left_alone(old: OldStore):
    work(old.spec)
    after = hashes(old.root)
    assert prepare_job(old.spec, PROGRESS).num_missing == 0
    assert hashes(old.root) == after


def test_an_old_store_grows_and_keeps_what_it_has(old: OldStore, tmp_path: Path):
    more: list[str] = []
    if old.spec.conversations is None:
        more = [f"personas.{kind}.questions=3" for kind in ("roles", "default")]
    else:
        talks = Path("conversations/texts/talks.jsonl")
        said = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Rain."}]
        talks.write_text(talks.read_text() + json.dumps({"messages": said}) + "\n")
    spec = load_spec(old.root.parent / "job.yaml", more)
    assert work(spec, grow=True).is_complete

    run = open_run(old.spec.store.url)
    assert_reads_exactly(run, old, old.committed)
    before: dict[str, str] = old.expected["objects"]
    after = hashes(old.root)
    rewritten = {path for path in before if after.get(path) != before[path]}
    assert {Path(path).name for path in rewritten} == {"run.json", "zarr.json", "index.parquet", "chunks.parquet"}
    found = verify_run(old.location)
    assert (found.problems, found.missing) == ([], ())

    at_once = spec.replaced(store={"url": str(tmp_path / "at-once")})
    assert work(at_once).is_complete
    of_both = [open_run(each.store.url) for each in (spec, at_once)]
    columns = ["persona", "polarity", "prompt_index", "question_index", "sample_index", "seed", "question", "response"]
    grown, new = (each.rollouts().select(columns) for each in of_both)
    assert grown.equals(new)
    assert grown.num_rows > len(old.expected["rollouts"])
    for hook_point, pooling in run.record.arrays:
        ours, theirs = (
            each.activations(hook_point=hook_point, pooling=pooling, layer="all").values for each in of_both
        )
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4 * np.abs(theirs).max())


def test_the_texts_hold_what_only_given_conversations_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = old_store("conversations", tmp_path, monkeypatch)
    work(old.spec)
    (path,) = (path for path in old.expected["added"] if path.startswith("rollouts/"))
    lines = pq.read_table(old.root / path).to_pylist()
    assert [line["turn_index"] for line in lines] == [1, 3]
    assert json.loads(lines[0]["extra"]) == {"message": {"mood": "glad"}, "pages": [1, 2], "sent": "1911-09-04"}
    assert lines == old.rollouts({old.expected["left_out"]})


def test_a_reduction_and_scores_of_then_are_read(old_personas: OldStore):
    old, run = old_personas, open_run(old_personas.spec.store.url)
    expected = old.expected["reduction"]
    reduction = run.reduction
    assert reduction is not None
    told = {name: getattr(reduction, name) for name in expected}
    assert json.loads(json.dumps(told)) == expected
    arrays = [name.removeprefix("reduction:") for name in old.numbers if name.startswith("reduction:")]
    assert len(arrays) > 10
    for name in arrays:
        np.testing.assert_array_equal(getattr(reduction, name), old.numbers[f"reduction:{name}"], name)
    assert run.rollouts(judge="old-judge", min_score=0.75, kind="role")["score"].to_pylist() == [3.0, 1.0]
    assert hashes(old.root) == old.expected["objects"]
    # Reduced again it has more arrays, and those of then are as they were.
    again = reduce_run(run, judge="none")
    for name in ("role_vectors", "default_vector", "axis", "projections", "floor_on_axis"):
        np.testing.assert_allclose(getattr(again, name), old.numbers[f"reduction:{name}"], rtol=1e-4, atol=1e-5)
    kept = hashes(old.root)
    del kept["analysis/current.json"]
    assert kept.items() >= {path: digest for path, digest in old.expected["objects"].items() if path in kept}.items()
    assert kept.keys() >= old.expected["objects"].keys() - {"analysis/current.json"}


def test_a_resumed_run_is_reduced_with_what_it_did_not_have(old_personas: OldStore):
    work(old_personas.spec)
    run = open_run(old_personas.spec.store.url)
    reduction = reduce_run(run, judge="none")
    assert reduction.reduction_id != old_personas.expected["reduction"]["reduction_id"]
    assert reduction.facts["units"] == reduction.facts["units_planned"] == run.completeness.done
    rows = reduction.projection_rows
    assert rows is not None
    assert sorted(rows.tolist()) == sorted(run.with_vector(run.index)["row"].to_pylist())
