"""The result of a query, indexed: values and rollouts stay together, and numpy's rules hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.storage.query.activations import Activations, Completeness
from persona_atlas.storage.query.run import Run, open_run

from fakes import FakeEngine, small_plan, small_spec, tokens_of, vector_of
from stored_runs import store_run

ADDRESS_COLUMNS = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
D = 3


def pooled(num_rollouts: int, layers: tuple[int, ...] = (15,)) -> Activations:
    """Each rollout's numbers begin with its place."""
    shape = (num_rollouts, D) if len(layers) == 1 else (num_rollouts, len(layers), D)
    values = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return _activations(values, num_rollouts, layers, None)


def per_token(counts: list[int]) -> Activations:
    """Each token's numbers are its place among all tokens."""
    values = np.repeat(np.arange(sum(counts), dtype=np.float32)[:, None], D, axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return _activations(values, len(counts), (15,), offsets)


def _activations(values: np.ndarray, num: int, layers: tuple[int, ...], offsets: np.ndarray | None) -> Activations:
    rollouts = pa.table(
        {
            "persona": pa.array(["pirate"] * num, pa.string()),
            "question_index": pa.array(range(num), pa.int32()),
            "num_content_tokens": pa.array(np.diff(offsets) if offsets is not None else [5] * num, pa.int32()),
        }
    )
    return Activations(
        values=values,
        rollouts=rollouts,
        layers=layers,
        hook_point="resid_post",
        pooling="response_mean" if offsets is None else "tokens",
        completeness=Completeness(1, 2),
        offsets=offsets,
        note="kept",
    )


@st.composite
def selections(draw: st.DrawFn, num: int) -> Any:
    """What numpy takes for one axis of ``num``: slices, masks and integers, as lists and as arrays."""
    bound = st.none() | st.integers(-num - 2, num + 2)
    step = st.none() | st.integers(-3, 3).filter(bool)
    places = st.lists(st.integers(-num, num - 1), max_size=8) if num else st.just([])
    mask = st.lists(st.booleans(), min_size=num, max_size=num)
    return draw(
        st.builds(slice, bound, bound, step)
        | places
        | places.map(lambda chosen: np.array(chosen, dtype=np.int32))
        | mask.map(lambda chosen: np.array(chosen, dtype=bool))
        | (mask if num else st.just([]))
    )


@given(st.data(), st.integers(0, 9), st.sampled_from([(15,), (0, 1), (7, 2, 4)]))
def test_any_selection_of_pooled_rows_is_numpys_with_its_rollouts(
    data: st.DataObject, num: int, layers: tuple[int, ...]
):
    found = pooled(num, layers)
    key = data.draw(selections(num))
    expected = found.values[key]
    part = found[key]
    assert isinstance(part, Activations)
    np.testing.assert_array_equal(part.values, expected)
    assert part.values.dtype == np.float32
    assert part.rollouts["question_index"].to_pylist() == np.arange(num)[key].tolist()
    assert part.rollouts.schema == found.rollouts.schema
    assert len(part) == len(expected) == part.rollouts.num_rows
    kept = (part.layers, part.hook_point, part.pooling, part.completeness, part.note)
    assert kept == (layers, "resid_post", "response_mean", found.completeness, "kept")
    for values, question in zip(part, part.rollouts["question_index"].to_pylist(), strict=True):
        np.testing.assert_array_equal(values, found.values[question])


@given(st.data(), st.lists(st.integers(0, 4), max_size=8))
def test_any_selection_of_per_token_rows_keeps_each_rollouts_tokens(data: st.DataObject, counts: list[int]):
    found = per_token(counts)
    key = data.draw(selections(len(counts)))
    chosen = np.arange(len(counts))[key].tolist()
    part = found[key]
    assert isinstance(part, Activations)
    assert part.offsets is not None
    assert part.offsets.dtype == np.int64
    assert part.rollouts["question_index"].to_pylist() == chosen
    assert np.diff(part.offsets).tolist() == part.rollouts["num_content_tokens"].to_pylist()
    assert len(part) == len(chosen)
    assert part.shape == (sum(counts[place] for place in chosen), D)
    for place, tokens in zip(chosen, part, strict=True):
        np.testing.assert_array_equal(tokens, found.per_rollout()[place])


@given(st.data(), st.integers(1, 9), st.booleans())
def test_two_selections_are_one(data: st.DataObject, num: int, is_per_token: bool):
    found = per_token([n % 4 for n in range(num)]) if is_per_token else pooled(num)
    first = data.draw(selections(num))
    once = found[first]
    second = data.draw(selections(len(once)))
    twice, at_once = once[second], found[np.arange(num)[first][second]]
    np.testing.assert_array_equal(twice.values, at_once.values)
    assert twice.rollouts.equals(at_once.rollouts)


@given(st.integers(1, 9), st.data())
def test_an_integer_gives_one_rollouts_numbers(num: int, data: st.DataObject):
    place = data.draw(st.integers(-num, num - 1))
    for found in (pooled(num), pooled(num, (1, 2)), per_token([n % 4 for n in range(num)])):
        for key in (place, np.int64(place), np.array(place)):
            np.testing.assert_array_equal(found[key], found.per_rollout()[place])
            assert np.shares_memory(found[key], found.values) or np.size(found[key]) == 0


@pytest.mark.parametrize(
    "key",
    [3, -4, [0, 3], [True], np.zeros(4, bool), 1.0, "a", (0, 0), (slice(None), 0), None, ..., True, np.True_, [[0, 1]]],
)
@pytest.mark.parametrize("found", [pooled(3), pooled(3, (1, 2)), per_token([2, 0, 1])], ids=["one", "two", "tokens"])
def test_what_numpy_refuses_along_one_axis_is_an_index_error(found: Activations, key: Any):
    with pytest.raises(IndexError):
        found[key]


def test_it_is_an_array_to_numpy():
    found = pooled(4, (1, 2))
    assert np.asarray(found) is found.values
    assert (found.shape, found.dtype, found.ndim, len(found)) == ((4, 2, D), np.float32, 3, 4)
    assert np.array(found) is not found.values
    assert np.asarray(found, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.asarray(found, dtype=np.float64, copy=False)
    np.testing.assert_array_equal(found - found.values.mean(axis=0), found.values - found.values.mean(axis=0))
    np.testing.assert_array_equal(found @ np.ones(D), found.values @ np.ones(D))
    np.testing.assert_array_equal(np.stack(list(found)), found.values)


def test_a_slice_is_a_view_and_a_mask_is_not():
    for found in (pooled(4), per_token([2, 1, 0, 3])):
        assert np.shares_memory(found[1:].values, found.values)
        assert not np.shares_memory(found[[True, True, False, True]].values, found.values)


def test_a_column_of_the_rollouts_chooses_among_them():
    found = per_token([2, 0, 3, 1])
    counts = found.rollouts["num_content_tokens"]
    long = found[pc.call_function("greater", [counts, 1])]
    assert long.rollouts["question_index"].to_pylist() == [0, 2]
    with pytest.raises(IndexError):
        found[pa.array([True, None, False, True])]


def test_the_repr_says_what_it_is_and_shows_no_numbers():
    assert repr(pooled(5, (3, 4, 5))) == (
        "<Activations (5, 3, 3) float32, resid_post/response_mean, layers 3 to 5, 5 rollouts>\n"
        "  pirate/question0\n  pirate/question1\n  pirate/question2\n  ... 2 more"
    )
    assert repr(per_token([2])) == (
        "<Activations (2, 3) float32, resid_post/tokens, layer 15, 1 rollout>\n  pirate/question0"
    )
    assert (
        repr(pooled(0, (7, 2))) == "<Activations (0, 2, 3) float32, resid_post/response_mean, layers 7, 2, 0 rollouts>"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    capture = {"poolings": ["response_mean", "tokens"], "token_layers": [1, 3]}
    plan = small_plan(small_spec(capture=capture))
    return open_run(
        store_run(str(tmp_path_factory.mktemp("run") / "run"), plan, engine=FakeEngine(token_layers=(1, 3))).url
    )


def addresses_of(rollouts: pa.Table) -> list[RolloutAddress]:
    return [RolloutAddress(*(line[name] for name in ADDRESS_COLUMNS)) for line in rollouts.to_pylist()]


@given(st.data())
def test_selected_rollouts_of_a_store_have_their_own_numbers(run: Run, data: st.DataObject):
    found = run.activations(layer=3)
    part = found[data.draw(selections(len(found)))]
    for address, values in zip(addresses_of(part.rollouts), part, strict=True):
        expected = vector_of(address, ("resid_post", "response_mean"), 4, 16)[3]
        np.testing.assert_allclose(values, expected, rtol=2**-11)


def test_selected_rollouts_of_a_store_have_their_own_tokens(run: Run):
    found = run.activations(layer="all", pooling="tokens")
    part = found[np.asarray(found.rollouts["persona"]) == "pirate"][::-2]
    assert len(part) == 3
    for line, tokens in zip(part.rollouts.to_pylist(), part, strict=True):
        address = RolloutAddress(*(line[name] for name in ADDRESS_COLUMNS))
        expected_KTD = tokens_of(address, line["num_content_tokens"], 2, 16)
        np.testing.assert_allclose(tokens, expected_KTD.transpose(1, 0, 2), rtol=2**-11)


def test_a_stores_answer_names_its_array_and_its_first_addresses(run: Run):
    found = run.activations(layer=[1, 3], persona="pirate")
    first, *addresses, rest = repr(found).splitlines()
    assert first == "<Activations (6, 2, 16) float32, resid_post/response_mean, layers 1, 3, 6 rollouts>"
    assert addresses == [f"  {address}" for address in addresses_of(found.rollouts)[:3]]
    assert rest == "  ... 3 more"
