"""The index: never behind the truth for a reader, cheap to open, and worth nothing when it is not this run's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import AtlasError, StoreError, TransientError
from persona_atlas.jobs.plan import Plan
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.parquet import to_parquet
from persona_atlas.storage.format.records import CommitRecord, RunRecord
from persona_atlas.storage.format.rollout_tables import (
    ADDRESS_ORDER,
    INDEX_SCHEMA,
    in_address_order,
    index_table,
    merged_in_address_order,
)
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import Run
from persona_atlas.storage.run import commits, index, index_keeper
from persona_atlas.storage.run.chunk_index import chunk_table, read_chunks
from persona_atlas.storage.run.commits import commit_unit, committed_units, now_iso, read_commits
from persona_atlas.storage.run.index import load_index, read_stored_index
from persona_atlas.storage.run.index_keeper import IndexKeeper, refresh_index
from persona_atlas.storage.run.lease import acquire, newest_lease
from persona_atlas.storage.run.recent import read_recent, write_recent
from persona_atlas.storage.run.run_store import read_run_record, reserve_rows

from counted import Counted
from fakes import small_plan, small_spec
from stored_runs import begin, record_of, store_run, write_unit

LEFT_OUT = ("role.poet.pos.p1.b0", "trait.anxious.neg.p0.b0")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan()


@pytest.fixture(scope="module")
def record(plan: Plan) -> RunRecord:
    return record_of(plan)


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


def nothing_happens() -> None:
    pass


def drive(
    location: Location,
    plan: Plan,
    unit_ids: Iterable[str],
    *,
    end: Callable[[], None] = nothing_happens,
    say: Callable[[str], None] = print,
) -> None:
    """Commit units as a job does, the index kept meanwhile; then something may happen under the lease."""
    wanted = list(unit_ids)
    with acquire(location, len(wanted)) as lease:
        begin(location, plan, lease)
        with IndexKeeper(location, record_of(plan), say) as keeper:
            for unit_id, row_block in zip(wanted, lease.row_blocks, strict=True):
                keeper.add(commit_unit(location, lease, write_unit(location, plan, unit_id, row_block)))
            end()


def make_it_look_killed(location: Location) -> None:
    """The last driver did not release its lease, and its time is over."""
    lease = newest_lease(location)
    assert lease is not None
    dead = lease.model_copy(update={"released": False, "expires_at": time.time() - 1})
    location.write(layout.driver_path(lease.generation), dead.to_bytes())


def truth(location: Location, record: RunRecord) -> pa.Table:
    commits = read_commits(location, committed_units(location))
    return index_table((commit.manifest for commit in commits), record.rows_per_block).sort_by(ADDRESS_ORDER)


def opened(location: Location) -> tuple[Run, Counted]:
    """Open a run and look at its index; gives what that asked of the store."""
    counted = Counted(location)
    record = read_run_record(counted)
    assert record is not None
    run = Run(counted, record)
    assert run.index.num_rows == 3 * len(run.committed)
    return run, counted


def test_a_complete_run_is_opened_with_two_requests(store_url: str, plan: Plan, record: RunRecord):
    location = open_location(store_url)
    drive(location, plan, plan.by_id)
    run, counted = opened(location)
    assert [(asked.method, asked.path) for asked in counted.asked] == [
        ("read", layout.RUN_RECORD),
        ("read", layout.INDEX),
    ]
    assert run.completeness.is_complete
    assert run.index.equals(truth(location, record))


def test_a_partial_run_lists_its_commits_and_reads_none_that_the_index_has(
    location: Location, plan: Plan, record: RunRecord
):
    drive(location, plan, set(plan.by_id) - set(LEFT_OUT))
    run, counted = opened(location)
    assert len(counted.asked) <= 4
    assert not [asked for asked in counted.of("read") if layout.COMMITS in asked.path]
    assert run.committed == set(plan.by_id) - set(LEFT_OUT)
    assert run.index.equals(truth(location, record))


def test_what_the_index_lacks_is_read_from_the_commits_and_nothing_else(
    location: Location, plan: Plan, record: RunRecord
):
    store_run(location.url, plan, leave_out=LEFT_OUT)
    refresh_index(location, record)
    with acquire(location, 1) as lease:
        late = LEFT_OUT[0]
        commit_unit(location, lease, write_unit(location, plan, late, lease.row_blocks[0]))
        run, counted = opened(location)
    assert [asked.path for asked in counted.of("read") if asked.path.startswith(layout.COMMITS)] == [
        layout.commit_path(late)
    ]
    assert late in run.committed
    assert run.index.equals(truth(location, record))


def test_a_commit_that_arrives_after_its_driver_and_the_next_have_ended_is_seen(
    location: Location, plan: Plan, record: RunRecord
):
    with acquire(location, 1) as stalled:
        begin(location, plan, stalled)
        late = write_unit(location, plan, LEFT_OUT[0], stalled.row_blocks[0])
    drive(location, plan, set(plan.by_id) - set(LEFT_OUT))
    assert opened(location)[0].completeness.done == 10
    commit = CommitRecord.of(late, generation=stalled.generation, committed_at=now_iso())
    assert location.create(layout.commit_path(LEFT_OUT[0]), commit.to_bytes())
    run, _ = opened(location)
    assert run.index.equals(truth(location, record))
    assert run.completeness.done == 11
    drive(location, plan, [LEFT_OUT[1]])
    run, counted = opened(location)
    assert run.index.equals(truth(location, record))
    assert len(counted.asked) == 2


@pytest.mark.parametrize(
    "data",
    [b"", b"PAR1", b"x" * 500, to_parquet(pa.table({"row": [1]})), to_parquet(INDEX_SCHEMA.empty_table())],
    ids=["empty", "short", "noise", "other_columns", "of_no_plan"],
)
def test_an_index_that_cannot_be_used_is_as_good_as_none_and_made_anew(
    location: Location, plan: Plan, record: RunRecord, data: bytes
):
    store_run(location.url, plan, leave_out=LEFT_OUT)
    location.write(layout.INDEX, data)
    location.write(layout.CHUNKS, data)
    expected = truth(location, record)
    assert load_index(location, record).table.equals(expected)
    refresh_index(location, record)
    assert read_stored_index(location, record).equals(expected)
    assert read_chunks(location).num_rows == 10


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_the_index_is_never_taken_for_a_line(
    location: Location, plan: Plan, record: RunRecord, bit: int
):
    drive(location, plan, list(plan.by_id)[:3])
    expected = truth(location, record)
    data = location.read(layout.INDEX) or b""
    path = Path(location.url) / layout.INDEX
    wrong = 0
    for place in range(bit, len(data), 53):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
        wrong += not load_index(location, record).table.equals(expected)
    assert wrong == 0


def test_the_index_of_another_job_is_not_taken_for_this_ones(tmp_path: Path, location: Location, plan: Plan):
    other = small_plan(small_spec(seed=8))
    elsewhere = open_location(str(tmp_path / "elsewhere"))
    drive(elsewhere, other, other.by_id)
    drive(location, plan, list(plan.by_id)[:4])
    location.write(layout.INDEX, elsewhere.read(layout.INDEX) or b"")
    assert load_index(location, record_of(plan)).committed == set(list(plan.by_id)[:4])


def test_a_damaged_commit_that_the_index_lacks_is_named(location: Location, plan: Plan, record: RunRecord):
    store_run(location.url, plan)
    path = layout.commit_path(LEFT_OUT[0])
    location.write(path, (location.read(path) or b"")[:50])
    loaded = load_index(location, record)
    assert LEFT_OUT[0] in loaded.committed
    with pytest.raises(StoreError, match=LEFT_OUT[0]) as caught:
        _ = loaded.table
    assert caught.value.code == "bad_record"


def test_refreshing_writes_when_units_were_added_and_only_then(location: Location, plan: Plan, record: RunRecord):
    store_run(location.url, plan, leave_out=LEFT_OUT)
    counted = Counted(location)
    refresh_index(counted, record)
    # The chunks first: who reads the new index finds the chunks it needs.
    assert [asked.path for asked in counted.of("write")] == [layout.CHUNKS, layout.INDEX]
    counted.asked.clear()
    refresh_index(counted, record)
    assert counted.of("write") == []


def test_a_keeper_writes_what_was_added_when_it_ends(location: Location, plan: Plan, record: RunRecord):
    for units in (list(plan.by_id)[:5], list(plan.by_id)[5:9]):
        drive(location, plan, units)
        assert read_stored_index(location, record).equals(truth(location, record))
    commits = read_commits(location, sorted(committed_units(location)))
    in_order = [("row_block", "ascending")]
    expected = chunk_table(commit.manifest for commit in commits)
    assert read_chunks(location).sort_by(in_order).equals(expected.sort_by(in_order))


def test_a_keeper_writes_now_and_then_while_a_driver_works(
    location: Location, plan: Plan, record: RunRecord, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index_keeper, "_EVERY_S", 0.01)
    seen: list[int] = []

    def wait_for_the_index() -> None:
        for _ in range(1000):
            seen.append(read_stored_index(location, record).num_rows)
            if seen[-1] == 9:
                return
            time.sleep(0.01)

    drive(location, plan, list(plan.by_id)[:3], end=wait_for_the_index)
    assert seen[-1] == 9


def test_a_unit_done_again_by_a_driver_that_is_killed_is_not_read_where_it_was(
    location: Location, plan: Plan, record: RunRecord
):
    drive(location, plan, plan.by_id)
    again = LEFT_OUT[0]
    location.delete([layout.commit_path(again)])
    with acquire(location, 1) as lease:
        begin(location, plan, lease)
        # Killed before it writes anything more: it is never left.
        keeper = IndexKeeper(location, record)
        assert again not in set(read_stored_index(location, record)["unit_id"].to_pylist())
        assert read_chunks(location).num_rows == 11
        keeper.add(commit_unit(location, lease, write_unit(location, plan, again, lease.row_blocks[0])))
    make_it_look_killed(location)
    assert opened(location)[0].index.equals(truth(location, record))
    drive(location, plan, [])
    run, counted = opened(location)
    assert run.index.equals(truth(location, record))
    assert len(counted.asked) == 2


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (StoreError("another driver took it.", code="lease_lost"), 0),
        (TransientError("the bucket is gone.", code="store_io"), 0),
        (KeyboardInterrupt(), 9),
    ],
)
def test_a_driver_in_trouble_with_its_store_writes_no_last_index_and_one_that_is_stopped_does(
    location: Location, plan: Plan, record: RunRecord, error: BaseException, written: int
):
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        drive(location, plan, list(plan.by_id)[:3], end=fail)
    assert read_stored_index(location, record).num_rows == written
    assert opened(location)[0].completeness.done == 3


def test_an_index_that_cannot_be_written_is_said_and_not_raised(location: Location, plan: Plan, record: RunRecord):
    class Full(Counted):
        def write(self, path: str, data: bytes) -> None:
            if path in (layout.INDEX, layout.CHUNKS):
                raise TransientError("the disk is full.", code="disk_full")
            super().write(path, data)

    said: list[str] = []
    drive(Full(location), plan, list(plan.by_id)[:3], say=said.append)
    assert len(said) == 1
    assert "the disk is full." in said[0]
    assert opened(location)[0].completeness.done == 3


ends = st.sampled_from(["in good order", "trouble", "killed", "stopped"])


@given(history=st.lists(st.tuples(st.integers(0, 4), ends), min_size=1, max_size=5), refresh=st.booleans())
@settings(max_examples=15, deadline=None)
def test_after_any_history_of_drivers_a_reader_sees_what_is_committed(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan, history: list[tuple[int, str]], refresh: bool
):
    location = open_location(str(tmp_path_factory.mktemp("history") / "run"))
    record = record_of(plan)
    left = list(plan.by_id)
    for count, how in history:
        units, left = left[:count], left[count:]

        def end(how: str = how) -> None:
            if how == "trouble":
                raise StoreError("another driver took it.", code="lease_lost")
            if how == "stopped":
                raise KeyboardInterrupt

        with suppress(AtlasError, KeyboardInterrupt):
            drive(location, plan, units, end=end)
        if how == "killed":
            make_it_look_killed(location)
        loaded = load_index(location, record)
        assert loaded.committed == committed_units(location)
        assert loaded.table.equals(truth(location, record))
    if refresh:
        refresh_index(location, record)
        assert load_index(location, record).table.equals(truth(location, record))


def wait_for(what: Callable[[], bool]) -> None:
    for _ in range(2000):
        if what():
            return
        time.sleep(0.01)
    pytest.fail("waited in vain")


def test_a_reader_of_a_running_store_gets_the_late_commits_from_one_object(
    store_url: str, plan: Plan, record: RunRecord, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index_keeper, "_RECENT_EVERY_S", 0.01)
    location = open_location(store_url)
    late = list(plan.by_id)[4:9]
    drive(location, plan, list(plan.by_id)[:4])
    seen: list[Counted] = []
    with acquire(location, len(late)) as lease:
        begin(location, plan, lease)
        with IndexKeeper(location, record, print, lease.generation) as keeper:
            for unit_id, row_block in zip(late, lease.row_blocks, strict=True):
                keeper.add(commit_unit(location, lease, write_unit(location, plan, unit_id, row_block)))
            wait_for(lambda: len(read_recent(location, record, late) or ()) == len(late))
            run, counted = opened(location)
            assert run.committed == set(list(plan.by_id)[:9])
            assert run.index.equals(truth(location, record))
            assert run.activations(layer=0).values.shape[0] == run.index.num_rows
            seen.append(counted)
    fetched = {asked.path for asked in seen[0].of("read")}
    assert not fetched & {layout.commit_path(unit_id) for unit_id in late}


def test_recent_commits_stay_for_a_reader_that_has_read_the_index_before(
    location: Location, plan: Plan, record: RunRecord, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index_keeper, "_RECENT_EVERY_S", 0.01)
    first, second = list(plan.by_id)[:2]
    with acquire(location, 2) as lease:
        begin(location, plan, lease)
        with IndexKeeper(location, record, print, lease.generation) as keeper:
            keeper.add(commit_unit(location, lease, write_unit(location, plan, first, lease.row_blocks[0])))
            wait_for(lambda: len(read_recent(location, record, [first]) or ()) == 1)
            loaded = load_index(location, record)
            keeper._write()  # pyright: ignore[reportPrivateUsage] - as its thread does after half a minute
            keeper.add(commit_unit(location, lease, write_unit(location, plan, second, lease.row_blocks[1])))
            wait_for(lambda: len(read_recent(location, record, [second]) or ()) == 1)
            counted = Counted(location)
            assert replace(loaded, location=counted).table.num_rows == 3
    assert not [asked for asked in counted.asked if asked.path.startswith(layout.COMMITS)]


def test_recent_commits_of_a_driver_whose_lease_was_deleted_are_not_those_of_the_next(
    location: Location, plan: Plan, record: RunRecord
):
    unit_id = next(iter(plan.by_id))
    with acquire(location, 1) as lease:
        begin(location, plan, lease)
        earlier = commit_unit(location, lease, write_unit(location, plan, unit_id, lease.row_blocks[0]))
    write_recent(location, record, lease.generation, [earlier])
    location.delete([layout.driver_path(lease.generation), layout.commit_path(unit_id)])
    with acquire(location, 1) as again, IndexKeeper(location, record, print, again.generation):
        assert again.generation == lease.generation
        commit_unit(location, again, write_unit(location, plan, unit_id, again.row_blocks[0]))
        assert load_index(location, record).table.equals(truth(location, record))


def test_recent_commits_that_could_not_be_written_are_written_the_next_time(
    location: Location, plan: Plan, record: RunRecord, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index_keeper, "_RECENT_EVERY_S", 0.01)
    unit_id = next(iter(plan.by_id))
    failed: list[int] = []

    def first_fail(*arguments: Any) -> int:
        if not failed:
            failed.append(1)
            raise TransientError("the store is out of reach.", code="store_io")
        return write_recent(*arguments)

    monkeypatch.setattr(index_keeper, "write_recent", first_fail)
    with acquire(location, 1) as lease:
        begin(location, plan, lease)
        with IndexKeeper(location, record, print, lease.generation) as keeper:
            keeper.add(commit_unit(location, lease, write_unit(location, plan, unit_id, lease.row_blocks[0])))
            wait_for(lambda: len(read_recent(location, record, [unit_id]) or ()) == 1)
    assert failed == [1]


@pytest.mark.parametrize("damage", ["noise", "another run", "another unit"])
def test_recent_commits_that_are_damaged_or_of_another_run_are_not_believed(
    location: Location, plan: Plan, record: RunRecord, damage: str
):
    store_run(location.url, plan, leave_out=LEFT_OUT)
    records = read_commits(location, sorted(committed_units(location)))
    if damage == "noise":
        location.write(layout.recent_path(1), b"PAR1")
    else:
        other = record.model_copy(update={"plan_digest": "0" * 64}) if damage == "another run" else record
        moved = [
            commit.model_copy(update={"generation": 7}) if damage == "another unit" else commit for commit in records
        ]
        write_recent(location, other, 1, moved)
    run, counted = opened(location)
    assert run.index.equals(truth(location, record))
    assert len([asked for asked in counted.of("read") if asked.path.startswith(layout.COMMITS)]) == len(records)


@given(indexed=st.sets(st.integers(0, 10)), late=st.sets(st.integers(0, 10)), page=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_of_a_large_run_those_commits_alone_are_listed_that_the_index_lacks(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan, indexed: set[int], late: set[int], page: int
):
    location = open_location(str(tmp_path_factory.mktemp("large") / "run"))
    record = record_of(plan)
    unit_ids = list(plan.by_id)
    drive(location, plan, [unit_ids[place] for place in sorted(indexed)])
    with acquire(location, len(late)) as lease:
        for place, row_block in zip(sorted(late - indexed), lease.row_blocks, strict=False):
            commit_unit(location, lease, write_unit(location, plan, unit_ids[place], row_block))
    with patch.object(index, "_LISTED_AT_ONCE", 0), patch.object(commits, "LISTED_PER_REQUEST", page):
        run, counted = opened(location)
        assert run.committed == committed_units(location)
        assert run.index.equals(truth(location, record))
    assert not counted.of("names") or [asked.path for asked in counted.of("names")] == [layout.DRIVERS]
    assert len(counted.of("names_between")) <= -(-len(unit_ids) // page)


def test_while_a_driver_works_a_large_run_is_read_without_listing_and_after_it_nothing_is_missed(
    location: Location, plan: Plan, record: RunRecord, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index, "_LISTED_AT_ONCE", 0)
    monkeypatch.setattr(index_keeper, "_RECENT_EVERY_S", 0.01)
    before, first, last = list(plan.by_id)[:3]
    # Of an earlier driver, which was killed before it wrote an index.
    with acquire(location, 1) as lease:
        begin(location, plan, lease)
        commit_unit(location, lease, write_unit(location, plan, before, lease.row_blocks[0]))
    assert opened(location)[0].committed == {before}
    with acquire(location, 2) as lease:
        reserve_rows(location, record, lease.row_blocks.stop)
        assert opened(location)[0].committed == {before}, "this driver has collected nothing yet"
        with IndexKeeper(location, record, print, lease.generation) as keeper:
            keeper.add(commit_unit(location, lease, write_unit(location, plan, first, lease.row_blocks[0])))
            wait_for(lambda: len(read_recent(location, record, [first]) or ()) == 1)
            run, counted = opened(location)
            assert run.committed == {before, first}
            assert run.index.equals(truth(location, record))
            assert not counted.of("names_between")
        # After its last word to the index, as a late PUT.
        commit_unit(location, lease, write_unit(location, plan, last, lease.row_blocks[1]))
        location.write(layout.driver_path(lease.generation), b"damaged")
        assert opened(location)[0].committed == {before, first, last}, "no driver is seen to work"
    assert opened(location)[0].committed == {before, first, last}


def test_a_page_of_a_listing_that_ends_before_the_range_is_followed_by_the_next(
    store_url: str, monkeypatch: pytest.MonkeyPatch
):
    location = open_location(store_url)
    names = [f"u{number:04d}.json" for number in range(1203)]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda name: location.write(f"commits/{name}", b""), names))
    for ranges, expected in [
        ([(names[3], names[-2])], names[3:-1]),
        ([(names[7], names[7]), (names[9], names[12])], [names[7], *names[9:13]]),
        ([("u0001", "u0003")], names[1:3]),
        ([("v", "w")], []),
        ([], []),
    ]:
        assert sorted(location.names_between("commits", ranges)) == expected
    assert location.names_between("nothing", [("a", "z")]) == []


addresses = st.tuples(st.sampled_from(["role", "trait"]), st.sampled_from(["é", "b", "a", "ä", "\U0001f600"]),
                      st.integers(0, 3), st.integers(0, 2**31 - 1))  # fmt: skip


@given(old=st.lists(addresses, max_size=30), new=st.lists(addresses, max_size=30), wide=st.booleans())
@settings(max_examples=60, deadline=None)
def test_merging_gives_what_sorting_gives(old: list[tuple[Any, ...]], new: list[tuple[Any, ...]], wide: bool):
    def table(lines: list[tuple[Any, ...]], first_row: int) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "kind": kind, "persona": persona, "polarity": "pos", "prompt_index": prompt,
                    "question_index": question, "sample_index": 2**31 - 1 if wide else 0, "row": first_row + place,
                }
                for place, (kind, persona, prompt, question) in enumerate(lines)
            ],
            schema=INDEX_SCHEMA,
        )  # fmt: skip

    stored = in_address_order(table(old, 0))
    merged = merged_in_address_order(stored, table(new, len(old)))
    expected = in_address_order(pa.concat_tables([stored, table(new, len(old))]))
    columns = ["kind", "persona", "prompt_index", "question_index"]
    assert merged.select(columns).equals(expected.select(columns))
    assert sorted(merged["row"].to_pylist()) == list(range(len(old) + len(new)))
