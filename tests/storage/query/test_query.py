"""Reading a run: the right numbers with the right rollouts, committed units only, no damage passed over."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import CommitRecord, parse_record
from persona_atlas.storage.format.rollout_tables import ROLLOUT_SCHEMA
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.activations import Activations
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.query.selection import Filters, select
from persona_atlas.storage.run.index_keeper import refresh_index

from counted import Counted
from fakes import FakeEngine, small_plan, small_spec, vector_of
from stored_runs import commit_units, store_run

MEAN = ("resid_post", "response_mean")
LAST = ("resid_post", "response_last")
UNCOMMITTED = ("role.poet.pos.p1.b0", "trait.anxious.neg.p0.b0")
EMPTY = RolloutAddress("role", "pirate", "pos", 0, 1, 0)
ADDRESS_COLUMNS = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")


@pytest.fixture(scope="module")
def plan() -> Plan:
    spec = small_spec(capture={"poolings": ["response_mean", "response_last"]})
    return small_plan(spec)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(arrays=(MEAN, LAST), empty=frozenset({EMPTY}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, plan: Plan, engine: FakeEngine) -> Run:
    """34 rollouts of 12 units planned; two units are written and not committed, one response is empty."""
    url = str(tmp_path_factory.mktemp("store") / "run")
    store_run(url, plan, engine=engine, leave_out=UNCOMMITTED)
    return open_run(url)


@pytest.fixture(scope="module")
def store_of_all(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every unit committed, no response empty."""
    return open_run(store_run(str(tmp_path_factory.mktemp("store") / "all"), small_plan()).url)


@pytest.fixture
def damaged(tmp_path: Path, run: Run) -> Path:
    """A copy of the run to break."""
    shutil.copytree(run.url, tmp_path / "run")
    return tmp_path / "run"


def addresses_of(rollouts: pa.Table) -> list[RolloutAddress]:
    return [RolloutAddress(*(line[name] for name in ADDRESS_COLUMNS)) for line in rollouts.to_pylist()]


def is_there(address: RolloutAddress, plan: Plan) -> bool:
    unit = next(u for u in plan.units if address in set(u.addresses()))
    return unit.unit_id not in UNCOMMITTED and address != EMPTY


@pytest.fixture(scope="module")
def committed(plan: Plan) -> list[RolloutAddress]:
    """Every rollout that has a vector, in address order."""
    every = sorted(address for unit in plan.units for address in unit.addresses())
    return [address for address in every if is_there(address, plan)]


def assert_values(found: Activations, layers: Sequence[int], *, squeezed: bool, array: tuple[str, str] = MEAN) -> None:
    assert found.values.dtype == np.float32
    assert found.layers == tuple(layers)
    assert found.values.shape == (found.rollouts.num_rows, *([] if squeezed else [len(layers)]), 16)
    values = found.values.reshape(-1, len(layers), 16)
    for row, address in zip(values, addresses_of(found.rollouts), strict=True):
        np.testing.assert_allclose(row, vector_of(address, array, 4, 16)[list(layers)], rtol=2**-11)


def test_a_store_gives_every_committed_rollout_its_own_numbers(store_url: str, plan: Plan, engine: FakeEngine):
    store_run(store_url, plan, engine=engine)
    found = open_run(store_url).activations(layer="all")
    assert len(addresses_of(found.rollouts)) == 35
    assert_values(found, range(4), squeezed=False)


def test_only_committed_units_are_there_in_address_order(run: Run, committed: list[RolloutAddress]):
    found = run.activations()
    assert addresses_of(found.rollouts) == committed
    assert len(committed) == 36 - 6 - 1
    rows = found.rollouts["row"].to_pylist()
    assert rows != sorted(rows), "the store's order is not the address order, or this proves nothing"
    assert str(found.completeness) == "10 of 12 units"
    assert not run.completeness.is_complete
    assert run.committed.isdisjoint(UNCOMMITTED)


some_names = (
    st.none()
    | st.sampled_from(["p*", "pirate", "*", "nobody", "teach?r"])
    | st.lists(st.sampled_from(["pirate", "poet", "teacher", "anxious", "assistant_default", "a*"]), max_size=3)
)
some_indices = st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=3)


@given(
    kind=st.none() | st.sampled_from(["role", "trait", "default", "r*"]) | st.just(["role", "default"]),
    persona=some_names,
    polarity=st.none() | st.sampled_from(["pos", "neg"]),
    prompt=some_indices,
    question=some_indices,
    layers=st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_filter_gives_the_rollouts_it_describes_with_their_own_numbers(
    run: Run,
    committed: list[RolloutAddress],
    kind: Any,
    persona: Any,
    polarity: Any,
    prompt: Any,
    question: Any,
    layers: list[int],
):
    from fnmatch import fnmatchcase

    def named(value: str, asked: Any) -> bool:
        return asked is None or any(fnmatchcase(value, p) for p in ([asked] if isinstance(asked, str) else asked))

    def numbered(value: int, asked: Any) -> bool:
        return asked is None or value in ([asked] if isinstance(asked, int) else asked)

    expected = [
        address
        for address in committed
        if named(address.kind, kind)
        and named(address.persona, persona)
        and named(address.polarity, polarity)
        and numbered(address.prompt_index, prompt)
        and numbered(address.question_index, question)
    ]
    found = run.activations(
        kind=kind, persona=persona, polarity=polarity, prompt=prompt, question=question, layer=layers
    )
    assert addresses_of(found.rollouts) == expected
    assert_values(found, layers, squeezed=False)


@pytest.mark.parametrize(
    ("asked", "layers", "squeezed"),
    [
        (3, [3], True),
        ("3", [3], True),
        ("middle", [2], True),
        ("all", [0, 1, 2, 3], False),
        ("1:3", [1, 2], False),
        (":2", [0, 1], False),
        ("2:", [2, 3], False),
        ("3,0", [3, 0], False),
        ([1], [1], False),
        ((3, 1), [3, 1], False),
        (range(4), [0, 1, 2, 3], False),
        (np.int64(3), [3], True),
        (np.array([3, 1]), [3, 1], False),
    ],
)
def test_layers_are_asked_for_by_number_list_range_or_word(run: Run, asked: Any, layers: list[int], squeezed: bool):
    assert_values(run.activations(persona="pirate", layer=asked), layers, squeezed=squeezed)


@pytest.mark.parametrize("asked", [4, -1, [0, 9], "9", "0:9", "2:2", "top", "1:2:3", "", "1,,2", []])
def test_a_layer_that_is_not_there_is_refused(run: Run, asked: Any):
    with pytest.raises(InputError) as caught:
        run.activations(layer=asked)
    assert caught.value.field == "layer"


def test_numbers_of_numpy_are_numbers(run: Run):
    expected = addresses_of(run.activations(prompt=1, question=[0, 2]).rollouts)
    assert expected
    assert addresses_of(run.activations(prompt=np.int64(1), question=np.array([0, 2])).rollouts) == expected
    for wrong in ([1.9], 1.5, np.array(1.0)):
        with pytest.raises(InputError) as caught:
            run.activations(question=wrong)  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.field) == ("not_a_number", "question")


@pytest.mark.parametrize(("filters", "field"), [({"persona": 5}, "persona"), ({"kind": [b"role"]}, "kind")])
def test_what_is_no_name_is_refused_by_its_filter(run: Run, filters: dict[str, Any], field: str):
    with pytest.raises(InputError) as caught:
        run.activations(**filters)
    assert (caught.value.code, caught.value.field) == ("not_a_name", field)


def test_a_hook_point_that_was_not_captured_is_blamed_itself(run: Run):
    for where, field in ((("resid_mid", "response_mean"), "hook_point"), ((LAST[0], "prompt_last"), "pooling")):
        with pytest.raises(InputError) as caught:
            run.reader(*where)
        assert caught.value.field == field


def test_an_index_of_other_rows_is_an_error_with_its_mend(damaged: Path, run: Run):
    unit_id = min(run.committed)
    path = damaged / "commits" / f"{unit_id}.json"
    commit = parse_record(CommitRecord, path.read_bytes(), "")
    refresh_index(open_location(str(damaged)), run.record)
    path.unlink()
    commit_units(str(damaged), small_plan(run.record.spec), [unit_id], FakeEngine(arrays=(MEAN, LAST)))
    again = parse_record(CommitRecord, path.read_bytes(), "")
    assert commit.manifest.row_block != again.manifest.row_block
    with pytest.raises(StoreError, match="gc --yes") as caught:
        open_run(str(damaged)).rollouts()
    assert caught.value.code == "wrong_index"


def test_rollouts_make_a_frame(run: Run):
    frame = run.rollouts(persona="pirate").to_pandas()
    assert len(frame) == 6
    assert set(frame["persona"]) == {"pirate"}
    assert frame["response"].str.startswith("I answer").sum() == 5, "one is empty"


def test_a_run_is_opened_by_a_path_too(run: Run):
    assert open_run(Path(run.url)).committed == run.committed


def test_an_answer_notes_what_the_asker_may_not_have_meant(run: Run, store_of_all: Run):
    assert store_of_all.activations(persona="pirate").note == ""
    assert store_of_all.activations(kind="default", persona="pirate").note == "No rollout matches."
    empty = run.activations(kind=EMPTY.kind, persona=EMPTY.persona, prompt=0, question=EMPTY.question_index)
    assert empty.note == "No rollout matches. 1 response empty, without activations. The run has 10 of 12 units so far."
    some = store_of_all.query(persona=["pirate", "poett", "z*"])
    assert some.shape == (6, 16)
    assert some.note == "There is no persona 'poett'. Did you mean 'poet'? There is no persona 'z*'."
    assert some.read().note == some.note
    nothing = run.activations(persona="poett")
    assert nothing.values.shape == (0, 16)
    assert nothing.note.startswith("No rollout matches. There is no persona 'poett'.")
    assert nothing.note.endswith("The run has 10 of 12 units so far.")


def test_a_run_of_some_layers_finds_them_by_the_models_numbers(tmp_path: Path):
    plan = small_plan(small_spec(capture={"layers": [1, 3]}))
    store_run(str(tmp_path / "run"), plan, engine=FakeEngine(layers=(1, 3)))
    run = open_run(str(tmp_path / "run"))
    assert run.layers == (1, 3)
    assert run.middle_layer == 1
    found = run.activations(layer=3)
    expected = [vector_of(address, MEAN, 2, 16)[1] for address in addresses_of(found.rollouts)]
    np.testing.assert_allclose(found.values, expected, rtol=2**-11)
    with pytest.raises(InputError, match="1 to 3"):
        run.activations(layer=2)


def test_each_pooling_has_its_own_numbers(run: Run):
    assert_values(run.activations(layer=1, pooling="response_last"), [1], squeezed=True, array=LAST)
    with pytest.raises(InputError, match="resid_post/response_mean, resid_post/response_last"):
        run.activations(pooling="prompt_mean")


def test_nothing_found_has_the_shape_of_nothing(run: Run):
    assert run.activations(persona="nobody").values.shape == (0, 16)
    found = run.activations(persona="nobody", layer="all")
    assert (found.values.shape, found.values.dtype) == ((0, 4, 16), np.float32)
    assert found.rollouts.num_rows == 0


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"min_tokens": 1234567, "max_tokens": 1234566}, "is 1,234,567, and the maximum is 1,234,566: nothing"),
        ({"min_tokens": 10**30, "max_tokens": 1}, f"is {10**30:,}, and the maximum is 1: nothing"),
        ({"min_score": 3.0, "max_score": 2.5}, "is 3, and the maximum is 2.5: nothing"),
        ({"min_score": float("inf"), "max_score": 0}, "is inf, and the maximum is 0: nothing"),
    ],
)
def test_bounds_in_the_wrong_order_are_refused_with_every_digit(run: Run, bounds: Filters, told: str):
    scored = run.index.append_column("score", pa.nulls(run.index.num_rows, pa.float64()))
    with pytest.raises(InputError) as caught:
        select(scored, bounds)
    assert caught.value.code == "bounds_in_wrong_order"
    assert told in caught.value.message


@pytest.mark.parametrize("wrong", [{"min_score": "3"}, {"max_score": True}, {"min_tokens": "3"}, {"max_tokens": [3]}])
def test_a_bound_that_is_no_number_is_refused_by_the_name_of_its_argument(run: Run, wrong: Filters):
    scored = run.index.append_column("score", pa.nulls(run.index.num_rows, pa.float32()))
    with pytest.raises(InputError, match="must be a number, but is") as caught:
        select(scored, wrong)
    assert (caught.value.code, caught.value.field) == ("not_a_number", *wrong)


def test_short_responses_are_left_out_on_demand(run: Run, committed: list[RolloutAddress]):
    assert run.activations(min_tokens=3).rollouts.num_rows == len(committed)
    assert run.activations(min_tokens=4).rollouts.num_rows == 0


def test_long_responses_are_left_out_on_demand(run: Run, committed: list[RolloutAddress]):
    assert run.activations(max_tokens=3).rollouts.num_rows == len(committed)
    assert run.activations(max_tokens=2).rollouts.num_rows == 0
    (empty,) = run.rollouts(max_tokens=2)["question_index"].to_pylist()
    assert empty == EMPTY.question_index


def test_a_filter_that_is_not_known_is_refused_with_the_nearest(run: Run):
    misspelt: Any = {"perosna": "pirate"}
    for act in (run.query, run.activations, run.rollouts, run.to_xarray):
        with pytest.raises(InputError, match="Did you mean 'persona'") as caught:
            act(**misspelt)
        assert (caught.value.code, caught.value.field) == ("unknown_filter", "perosna")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"kind": "roles"}, "'roles' is not a kind. Did you mean 'role'?"),
        ({"kind": ["role", "x*"]}, "'x*' is not a kind."),
        ({"polarity": "positive"}, "'positive' is not a polarity."),
    ],
)
def test_a_kind_or_polarity_that_no_run_has_is_refused_with_those_there_are(run: Run, wrong: Filters, told: str):
    for act in (run.query, run.activations, run.rollouts, run.to_xarray):
        with pytest.raises(InputError) as caught:
            act(**wrong)
        (field,) = wrong
        assert (caught.value.code, caught.value.field) == (f"unknown_{field}", field)
        assert told in caught.value.message
        assert ("conversation" if field == "kind" else "pos, neg") in str(caught.value.hint)


def test_a_kind_that_this_run_has_none_of_selects_nothing(run: Run):
    assert run.query(kind="conversation").shape == (0, 16)


def test_a_query_says_what_it_would_give_and_reads_nothing_yet(run: Run, committed: list[RolloutAddress]):
    counted = Counted(run.location)
    watched = Run(counted, run.record)
    assert watched.index.num_rows == len(committed) + 1
    counted.asked.clear()
    asked = watched.query(persona="p*", layer=[3, 0], pooling="response_last")
    assert asked.shape == (sum(address.persona[0] == "p" for address in committed), 2, 16)
    assert (asked.layers, asked.hook_point, asked.pooling) == ((3, 0), *LAST)
    assert asked.rollouts.num_rows == asked.shape[0]
    assert watched.query(layer=3).shape == (len(committed), 16)
    assert counted.asked == []
    assert np.array_equal(asked.read().values, watched.activations(persona="p*", layer=[3, 0], pooling=LAST[1]).values)


def test_an_empty_response_is_in_the_index_and_in_no_answer(run: Run):
    assert run.num_empty_responses == 1
    assert EMPTY in addresses_of(run.index)
    assert EMPTY not in addresses_of(run.activations().rollouts)
    (line,) = run.rollouts(persona="pirate", prompt=0, question=1).to_pylist()
    assert line["response"] == ""


def test_texts_come_with_the_rollouts_they_belong_to(run: Run):
    table = run.rollouts(kind=["role", "trait"], question=[0, 2])
    for line, address in zip(table.to_pylist(), addresses_of(table), strict=True):
        assert line["response"] == f"I answer {address}"
    assert addresses_of(table) == sorted(addresses_of(table))
    assert table.num_rows == 2 * 8
    assert run.rollouts(persona="nobody").schema == ROLLOUT_SCHEMA == table.schema


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
@pytest.mark.parametrize("layer", ["all", 2])
def test_blocks_give_every_rollout_once_in_order_and_whole_units(
    run: Run, committed: list[RolloutAddress], step: int, layer: int | str
):
    asked = run.query(layer=layer)
    blocks = list(asked.blocks(max_bytes=step * len(asked.layers) * 16 * 4))
    assert max(lines.num_rows for lines, _ in blocks) <= max(step, 3)
    assert [address for lines, _ in blocks for address in addresses_of(lines)] == committed
    assert np.array_equal(np.concatenate([values for _, values in blocks]), run.activations(layer=layer).values)
    units = [unit for lines, _ in blocks for unit in lines["unit_id"].unique().to_pylist()]
    assert len(units) == len(set(units)) == 10
    assert list(run.query(persona="nobody").blocks()) == []


def test_a_run_that_goes_on_is_seen_after_refresh(tmp_path: Path, plan: Plan, engine: FakeEngine):
    location = store_run(str(tmp_path / "run"), plan, engine=engine, leave_out=UNCOMMITTED, uncommitted=False)
    run = open_run(location.url)
    refresh_index(location, run.record)
    assert run.completeness.done == 10
    commit_units(location.url, plan, UNCOMMITTED, engine)
    assert run.completeness.done == 10
    assert run.activations().rollouts.num_rows == 29
    assert run.refresh().completeness.is_complete
    assert_values(run.activations(layer="all"), range(4), squeezed=False)
    assert run.index.num_rows == 36


def test_rollouts_whose_texts_were_changed_are_not_given(damaged: Path):
    first, second, *_ = sorted(damaged.glob("rollouts/role.pirate*"))
    first.write_bytes(second.read_bytes())
    found = open_run(str(damaged))
    assert found.rollouts(persona="teacher").num_rows == 6
    with pytest.raises(StoreError, match="not the one that was committed") as caught:
        found.rollouts(persona="pirate")
    assert (caught.value.code, caught.value.file) == ("bad_object", str(first))


def test_a_damaged_commit_record_is_named(damaged: Path):
    path = next(damaged.glob("commits/role.pirate*"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StoreError, match="commits") as caught:
        _ = open_run(str(damaged)).index
    assert caught.value.code == "bad_record"


def test_a_missing_array_is_an_error(damaged: Path):
    shutil.rmtree(damaged / layout.array_path(*MEAN))
    found = open_run(str(damaged))
    with pytest.raises(StoreError, match="missing") as caught:
        found.activations()
    assert caught.value.code == "missing_object"
    assert found.activations(pooling="response_last").rollouts.num_rows == 29


def test_a_store_is_read_without_its_conveniences(damaged: Path, run: Run):
    before = run.activations(layer="all")
    refresh_index(open_location(str(damaged)), run.record)
    for name in (layout.INDEX, layout.CHUNKS):
        (damaged / name).unlink()
        found = open_run(str(damaged)).activations(layer="all")
        assert np.array_equal(found.values, before.values)
        assert found.rollouts.equals(before.rollouts)


def test_a_place_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        open_run(str(tmp_path / "nothing"))
    assert caught.value.code == "no_run"
    assert not (tmp_path / "nothing").exists()


def test_the_middle_is_the_nearest_captured_layer(tmp_path: Path):
    plan = small_plan(small_spec(capture={"layers": [0, 1]}))
    store_run(str(tmp_path / "run"), plan, engine=FakeEngine(layers=(0, 1)))
    assert open_run(str(tmp_path / "run")).activations().layers == (1,)
