"""What a second reduction reads, that it gives the same as the first would, and that damage is computed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.analysis.reduction.rollouts import personas_of
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.derived.reduction import ARRAYS
from persona_atlas.storage.derived.reductions import Reduction, ReductionWriter, sums_in_use
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.commits import committed_units, read_commits
from persona_atlas.storage.verification.garbage import find_garbage, remove_garbage

from fakes import small_plan, small_spec
from plain_driver import work_here
from scored_runs import score_run
from stored_runs import commit_units, record_of, small_run

LATE_TRAIT, LATE_ROLE = "trait.anxious.pos.p1.b0", "role.teacher.pos.p1.b0"


def exact_spec(url: Path) -> JobSpec:
    return small_spec(store={"url": str(url), "mantissa_bits": 23})


def assert_close(found: Reduction, expected: Reduction, leave_out: tuple[str, ...] = ()) -> None:
    for name in ARRAYS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if b is not None and name not in leave_out:
            # Components of no variance have any direction; here there are none.
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_first_reduction_reads_every_unit_twice_and_the_second_none(tmp_path: Path, units_read: list[str]):
    run = small_run(str(tmp_path))
    reduce_run(run)
    assert sorted(units_read) == sorted([*run.committed, *run.committed])
    units_read.clear()
    reduce_run(open_run(tmp_path), percentiles=[10])
    assert units_read == []


@pytest.mark.parametrize(("late", "projected_again"), [(LATE_TRAIT, False), (LATE_ROLE, True)])
def test_of_a_new_unit_only_itself_is_averaged_and_all_is_projected_if_the_axis_is_another(
    tmp_path: Path, units_read: list[str], late: str, projected_again: bool
):
    spec = exact_spec(tmp_path / "run")
    run = small_run(str(tmp_path / "run"), spec, leave_out=[late])
    reduce_run(run)
    units_read.clear()
    commit_units(str(tmp_path / "run"), small_plan(spec), [late])
    found = reduce_run(run.refresh())
    assert sorted(units_read) == sorted([late, *(run.committed if projected_again else [late])])
    from_scratch = reduce_run(small_run(str(tmp_path / "other"), exact_spec(tmp_path / "other")))
    # Row blocks are assigned by each run.
    assert_close(found, from_scratch, leave_out=("projection_rows",))


def test_of_samples_that_were_added_only_their_units_are_averaged(tmp_path: Path, units_read: list[str]):
    def job(url: Path, samples: int) -> JobSpec:
        counts = {"prompts": 1, "questions": 4}
        roles = {"names": ["pirate", "poet", "teacher"], "samples": samples, **counts}
        store = {"url": str(url), "mantissa_bits": 23}
        return small_spec(personas={"roles": roles, "default": counts}, store=store)

    work_here(job(tmp_path / "run", 1))
    reduce_run(open_run(tmp_path / "run"))
    work_here(job(tmp_path / "run", 2), grow=True)
    units_read.clear()
    run = open_run(tmp_path / "run")
    found = reduce_run(run)
    # The samples of a question are neighbours, so that lines of both units alternate.
    assert sorted(units_read) == sorted([*run.committed, *(unit for unit in run.committed if ".a1." in unit)])
    work_here(job(tmp_path / "other", 2))
    assert_close(found, reduce_run(open_run(tmp_path / "other")), leave_out=("projection_rows",))


def test_other_scores_of_one_role_cost_that_role_alone_if_the_axis_stays(tmp_path: Path, units_read: list[str]):
    run = small_run(str(tmp_path))
    score_run(run, "judge", lambda line: 1 if line["persona"] == "poet" else 3)
    reduce_run(run, min_count=1)
    units_read.clear()
    score_run(run, "judge", lambda line: 0 if line["persona"] == "poet" else 3)
    reduce_run(run, min_count=1)
    assert sorted(units_read) == sorted(unit for unit in run.committed if unit.startswith("role.poet."))


@pytest.mark.parametrize("folder", [layout.SUMS, layout.PROJECTIONS])
@pytest.mark.parametrize("place", [6, -6], ids=["in the header", "in a chunk"])
def test_a_damaged_partial_result_is_computed_again(tmp_path: Path, units_read: list[str], folder: str, place: int):
    run = small_run(str(tmp_path))
    first = reduce_run(run)
    units_read.clear()
    (damaged,) = (tmp_path / folder).rglob("role-pirate-pos-*")
    data = bytearray(damaged.read_bytes())
    data[place] ^= 1
    damaged.write_bytes(bytes(data))
    found = reduce_run(run, percentiles=[1, 25, 50, 75, 99])
    assert set(units_read) == {unit for unit in run.committed if unit.startswith("role.pirate.")}
    np.testing.assert_array_equal(np.asarray(found.mean), np.asarray(first.mean))
    np.testing.assert_array_equal(np.asarray(found.projections), np.asarray(first.projections))
    data[place] ^= 1
    assert damaged.read_bytes() == bytes(data)


@pytest.mark.parametrize("step", ["write", "finish"])
def test_a_reduction_that_was_killed_leaves_a_store_that_reduces_and_reads_nothing_twice(
    tmp_path: Path, units_read: list[str], monkeypatch: pytest.MonkeyPatch, step: str
):
    expected = reduce_run(small_run(str(tmp_path / "whole")))
    run = small_run(str(tmp_path / "run"))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReductionWriter, step, killed)
        with pytest.raises(KeyboardInterrupt):
            reduce_run(run)
    assert run.refresh().reduction is None
    units_read.clear()
    found = reduce_run(run)
    assert len(units_read) == (len(run.committed) if step == "write" else 0)
    assert_close(found, expected)


def test_gc_deletes_partial_results_of_earlier_reductions_and_keeps_the_others(tmp_path: Path, units_read: list[str]):
    url = str(tmp_path / "run")
    spec = small_spec(url)
    run = small_run(url, spec, leave_out=[LATE_ROLE])
    reduce_run(run)
    old = sums_in_use(run.location)
    commit_units(url, small_plan(spec), [LATE_ROLE])
    last = reduce_run(run.refresh())
    location = open_location(url)
    commits = read_commits(location, sorted(committed_units(location)))
    garbage = find_garbage(location, [commit.manifest for commit in commits], is_complete=True)
    assert {found.path for found in garbage} == old - sums_in_use(location)
    assert remove_garbage(location, record_of(small_plan(spec)), garbage) == len(garbage)
    units_read.clear()
    again = reduce_run(run.refresh(), percentiles=[1, 2])
    assert units_read == []
    np.testing.assert_array_equal(np.asarray(again.projections), np.asarray(last.projections))


def test_the_names_of_what_is_kept_stay_the_same():
    # A partial result is found by these digests: with others, everything in a store would be read again.
    lines = pa.table(
        {
            "kind": ["role"] * 6,
            "persona": ["poet"] * 6,
            "polarity": ["pos"] * 6,
            "unit_id": ["u0", "u0", "u1", "u1", "u0", "u1"],
            "row": [4, 5, 9, 8, 7, 11],
            "question_index": [0, 1, 2, 3, 5, 4],
        }
    )
    (poet,) = personas_of(lines, 4)
    assert poet.groups == (("unscored", "even"), ("unscored", "odd"))
    assert poet.counts == (3, 3)
    assert [unit.places_N.tolist() for unit in poet.units] == [[0, 1, 4], [2, 3, 5]]
    assert [unit.groups_N.tolist() for unit in poet.units] == [[0, 1, 1], [0, 1, 0]]
    assert [unit.rows_digest for unit in poet.units] == ["71ef78db25b31a72", "6b5f7feed3a84936"]
    assert [unit.digest for unit in poet.units] == ["88d849becf9b9bc5", "c7ad036bd3bd94e3"]
    assert poet.digest[:16] == "64f261933ee5f4ed"
