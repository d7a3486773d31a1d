from __future__ import annotations

import numpy as np
import pytest

from bertillery.engine.rng import Permutation, integers, key, uniform


def test_numbers_belong_to_their_parts() -> None:
    grid = uniform(3, np.arange(50)[:, None], np.arange(40))
    assert grid.shape == (50, 40)
    assert grid[7, 9] == uniform(3, 7, 9)
    assert len(np.unique(grid)) == grid.size
    assert uniform(1, 2) != uniform(2, 1)
    assert key(5) != key(5, 0)


def test_uniform_and_independent() -> None:
    a, b = uniform(1, np.arange(200_000), 0), uniform(1, np.arange(200_000), 1)
    counts = np.bincount((a * 64).astype(int), minlength=64)
    chi = ((counts - 3125) ** 2 / 3125).sum()
    assert chi < 120  # 63 degrees of freedom: p < 1e-5
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(200_000)
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 4 / np.sqrt(200_000)


def test_integers_cover_their_range() -> None:
    drawn = integers(7, 9, np.arange(70_000))
    np.testing.assert_allclose(np.bincount(drawn) / 10_000, 1, atol=0.05)
    assert (integers(np.array([1, 2, 3]), 0, np.arange(3)) < [1, 2, 3]).all()


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 65_537])
def test_permutation_is_a_bijection(size: int) -> None:
    mapped = Permutation(size, 1, 2)(np.arange(size))
    np.testing.assert_array_equal(np.sort(mapped), np.arange(size))


def test_permutation_of_a_huge_range_needs_no_table() -> None:
    permutation = Permutation(10**12, 5)
    mapped = permutation(np.arange(10**12 - 1000, 10**12))
    assert len(np.unique(mapped)) == 1000
    assert mapped.min() < 10**11
    np.testing.assert_array_equal(permutation(10**12 - 1000), mapped[:1])


def test_permutation_mixes() -> None:
    mapped = Permutation(100_000, 3)(np.arange(100_000))
    assert abs(np.corrcoef(mapped, np.arange(100_000))[0, 1]) < 0.02
    assert (Permutation(100_000, 4)(np.arange(100_000)) == mapped).mean() < 0.001
