"""Sums of parts in any order equal those of everything at once; memory is shared out so that it stays bounded."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.moments import Moments
from persona_atlas.analysis.reduction import budget, group_sums
from persona_atlas.analysis.reduction.group_sums import GroupSums, Membership, membership
from persona_atlas.analysis.reduction.projections import along
from persona_atlas.storage.derived.partials import PartialWriter


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([0.0, 1e4, -3e6, 2e19]))
def test_sums_of_shuffled_parts_equal_those_of_all_at_once(seed: int, num_parts: int, mean: float):
    rng = np.random.default_rng(seed)
    values_NLD = (mean + max(1, mean / 2**20) * rng.standard_normal((24, 3, 8))).astype(np.float32)
    groups_N = rng.integers(0, 3, 24)
    sums = GroupSums(3, 3, 8)
    for rows in np.array_split(rng.permutation(24), num_parts):
        assert sums.add(0, values_NLD[rows].transpose(1, 0, 2).copy(), _membership(groups_N[rows], 3))
    for number, found in enumerate(_moments(sums)):
        expected = Moments.of(values_NLD[groups_N == number])
        assert found.count == expected.count
        # Differences and sums are float64; those of neighbouring float32 are exact.
        np.testing.assert_allclose(found.mean_LD, expected.mean_LD, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.m2_LD, expected.m2_LD, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d_model", [8, 577, 576, 4099, 3072])
@pytest.mark.parametrize("num_rows", [1, 7, 48])
def test_sums_are_right_whatever_the_width_and_the_number_of_rows(d_model: int, num_rows: int):
    rng = np.random.default_rng(d_model + num_rows)
    whole_LRD = (1e3 + rng.standard_normal((2, 50, d_model))).astype(np.float32)
    # The rows of a unit that have a vector are some of a row block; the others are not looked at.
    rows_N, groups_N = np.sort(rng.permutation(50)[:num_rows]), rng.integers(0, 4, num_rows)
    whole_LRD[:, np.setdiff1d(np.arange(50), rows_N)] = np.nan
    before_LRD, sums = whole_LRD.copy(), GroupSums(4, 2, d_model)
    for first in range(2):
        assert sums.add(first, whole_LRD[first : first + 1], membership(rows_N, groups_N, 4))
    np.testing.assert_array_equal(whole_LRD, before_LRD)
    for number, found in enumerate(_moments(sums)):
        expected = Moments.of(whole_LRD[:, rows_N[groups_N == number]].transpose(1, 0, 2))
        assert found.count == expected.count
        np.testing.assert_allclose(found.mean_LD, expected.mean_LD, rtol=1e-12)
        np.testing.assert_allclose(found.m2_LD, expected.m2_LD, rtol=1e-9, atol=1e-12)


def test_equal_vectors_have_their_mean_exactly_and_no_variance():
    values_LRD = np.repeat(np.linspace(-9000, 7, 8, dtype=np.float32)[None, None], 12, axis=1)
    sums = GroupSums(1, 1, 8)
    for _ in range(3):
        assert sums.add(0, values_LRD, _membership(np.zeros(12, dtype=np.int64), 1))
    (found,) = _moments(sums)
    assert found.count == 36
    np.testing.assert_array_equal(found.mean_LD, values_LRD[:, 0])
    np.testing.assert_array_equal(found.m2_LD, np.zeros((1, 8)))


def test_the_largest_values_of_float32_have_a_mean_and_a_variance():
    largest = np.finfo(np.float32).max
    values_LRD = np.array([[[largest], [-largest]]], dtype=np.float32)
    sums = GroupSums(1, 1, 1)
    assert sums.add(0, values_LRD, _membership(np.zeros(2, dtype=np.int64), 1))
    (found,) = _moments(sums)
    assert found.mean_LD.item() == 0
    assert found.m2_LD.item() == pytest.approx(2 * float(largest) ** 2)


@pytest.mark.parametrize("num_rows", [1, 4, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_told_of_wherever_it_is(num_rows: int, value: float):
    groups = _membership(np.zeros(num_rows, dtype=np.int64), 2)
    for row in range(num_rows):
        for layer in range(2):
            values_LRD = np.ones((2, num_rows, 8), dtype=np.float32)
            values_LRD[layer, row, 5] = value
            assert not GroupSums(2, 2, 8).add(0, values_LRD, groups)


def test_values_that_do_not_fit_are_refused_before_the_compiled_loop_reads_beyond_them():
    sums, groups = GroupSums(2, 3, 4), _membership(np.arange(8) % 2, 2)
    fitting_LRD = np.ones((3, 8, 4), dtype=np.float32)
    assert sums.add(0, fitting_LRD, groups)
    wider = GroupSums(2, 3, 8)
    for other, first, values_LRD, of_groups in [
        (sums, 1, fitting_LRD, groups),
        (wider, 0, fitting_LRD, groups),
        (sums, 0, fitting_LRD[:, :7].copy(), groups),
        (sums, 0, np.ones((3, 16, 4), dtype=np.float32)[:, ::2], groups),
        (sums, 0, fitting_LRD, _membership(np.arange(8) % 3, 3)),
    ]:
        with pytest.raises(ValueError, match="do not fit"):
            other.add(first, values_LRD, of_groups)
    with pytest.raises(ValueError, match="group 2 of 2"):
        _membership(np.arange(8) % 3, 2)


def test_the_digits_of_sums_do_not_depend_on_the_group_that_the_first_rollout_is_in():
    values_LRD = np.random.default_rng(3).standard_normal((1, 2, 8), dtype=np.float32)
    found = []
    for groups_N in (np.array([0, 1]), np.array([1, 0])):
        sums = GroupSums(2, 1, 8)
        assert sums.add(0, values_LRD, _membership(groups_N, 2))
        found.append([_moments(sums)[number] for number in groups_N])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.mean_LD, b.mean_LD)


def test_threads_that_begin_at_the_same_time_compile_once(monkeypatch: pytest.MonkeyPatch):
    compiled: list[str] = []
    njit = numba.njit

    def counting(signature: str, **options: Any) -> Any:
        compiled.append(signature)
        return njit(signature, **options)

    monkeypatch.setattr(numba, "njit", counting)
    group_sums._compile_add.cache_clear()  # type: ignore[attr-defined]
    values_LRD, groups = np.ones((1, 4, 8), dtype=np.float32), _membership(np.zeros(4, dtype=np.int64), 1)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: GroupSums(1, 1, 8).add(0, values_LRD, groups), range(8)))
    assert len(compiled) == 1


def _moments(sums: GroupSums) -> list[Moments]:
    counts_G, mean_LGD, m2_LGD = sums.finish()
    return [Moments(int(count), mean_LGD[:, g], m2_LGD[:, g]) for g, count in enumerate(counts_G)]


def _membership(groups_N: npt.NDArray[np.int64], num_groups: int) -> Membership:
    return membership(np.arange(len(groups_N)), groups_N, num_groups)


@pytest.mark.parametrize("d_model", [1, 8, 1024, 1025, 2048, 2304])
@pytest.mark.parametrize("num_columns", [1, 4])
def test_products_are_right_whatever_the_width(d_model: int, num_columns: int):
    rng = np.random.default_rng(d_model)
    values_LND = rng.standard_normal((2, 5, d_model), dtype=np.float32)
    weights_LDK = rng.standard_normal((2, d_model, num_columns), dtype=np.float32)
    found_LNK = along(values_LND, weights_LDK)
    assert found_LNK.dtype == np.float32
    scale_LNK = np.abs(values_LND).astype(np.float64) @ np.abs(weights_LDK)
    assert (np.abs(found_LNK - values_LND.astype(np.float64) @ weights_LDK) <= 1e-6 * scale_LNK).all()
    # A row that is not filled spoils its own products only.
    values_LND[:, 3] = np.nan
    spoilt_LNK = along(values_LND, weights_LDK)
    assert np.isnan(spoilt_LNK[:, 3]).all()
    np.testing.assert_array_equal(np.delete(spoilt_LNK, 3, axis=1), np.delete(found_LNK, 3, axis=1))


def test_finishing_sums_and_encoding_them_hold_no_second_copy_of_them():
    sums = GroupSums(10, 20, 4096)
    writer = PartialWriter()
    tracemalloc.start()
    try:
        _, mean_LGD, m2_LGD = sums.finish()
        for mean_GD, m2_GD in zip(mean_LGD, m2_LGD, strict=True):
            # Numbers that do not compress, as means are.
            mean_GD[:] = m2_GD[:] = np.random.default_rng(0).standard_normal(mean_GD.shape)
            writer.add({"mean": mean_GD, "m2": m2_GD})
        encoded = writer.finish({})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(encoded) > 0.8 * 2 * mean_LGD.nbytes
    # A buffer that grows has room for an eighth more.
    assert peak < 1.3 * len(encoded)


MODELS = [(30, 576, 48), (46, 4608, 48), (64, 5120, 48), (80, 8192, 48), (126, 16384, 255), (4, 16, 3)]


@pytest.mark.parametrize(("num_layers", "d_model", "rows"), MODELS)
@pytest.mark.parametrize("num_groups", [0, 2, 10])
def test_the_passes_over_rollouts_stay_within_half_a_gibibyte(
    num_layers: int, d_model: int, rows: int, num_groups: int
):
    step = budget.layers_per_read(num_layers, rows, d_model, num_groups)
    threads = budget.threads(num_layers, rows, d_model, num_groups, num_cores=64)
    encoded = 16 * num_groups * num_layers * d_model
    # Rows as they are stored and as float32, sums, and what they are encoded to.
    per_thread = step * d_model * (4 * rows + 40 * num_groups) + encoded
    assert threads >= 1
    assert step >= 1
    assert threads * per_thread <= budget.ROW_PASS_BYTES or threads == 1
    assert per_thread <= 2**29


@pytest.mark.parametrize(("num_layers", "d_model", "rows"), MODELS)
def test_vectors_and_projections_of_a_group_of_layers_stay_within_their_share(num_layers: int, d_model: int, rows: int):
    step = budget.layers_of_vectors(num_layers, d_model, 275, 240, 10)
    assert step == num_layers or step & (step - 1) == 0
    of_a_layer = d_model * (275 * (4 * 4 + 2 * 4 + 4 * 8) + 240 * 48 + 8 * 10 * 32)
    assert step == 1 or step * of_a_layer + budget.pca_bytes(275, d_model) <= budget.VECTOR_BYTES
    at_a_time = budget.layers_of_projections(num_layers, 908_400)
    assert at_a_time == 1 or at_a_time * 908_400 * 16 <= budget.PROJECTION_BYTES
