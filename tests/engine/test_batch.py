"""The packed batch: where its rows lie, and that it moves whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertillery.engine.batch import PackedBatch, pack, ranges
from bertillery.engine.layout import packing_layout


def batch_of(lengths: list[int], vocab_size: int = 90, seed: int = 0) -> PackedBatch:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    types = np.concatenate([(np.arange(n) > n // 2).astype(int) for n in lengths])
    return pack(rng.integers(5, vocab_size, total), types, np.array(lengths), targets={}, counts={})


LENGTHS = [[5], [7, 7, 7], [3, 128, 40, 41, 9, 2, 64, 64], list(range(2, 60))]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_plan_holds_every_row_once(lengths: list[int]) -> None:
    layout = packing_layout(np.array(lengths))
    total = sum(lengths)
    np.testing.assert_array_equal(layout.gather[layout.scatter], np.arange(total))
    assert len(layout.gather) == sum(b * s for b, s in layout.shapes)
    assert len(layout.gather) < 1.5 * total  # padded buckets hold little padding
    assert len(layout.shapes) <= 16


def test_batch_moves_whole() -> None:
    batch = batch_of([3, 9]).to(torch.device("meta"))
    assert {batch.input.ids.device.type, batch.input.layout.gather.device.type} == {"meta"}
    assert {bias.device.type for bias in batch.input.layout.biases if bias is not None} <= {"meta"}


def test_positions_restart() -> None:
    np.testing.assert_array_equal(ranges(np.array([2, 0, 3])), [0, 1, 0, 1, 2])
    np.testing.assert_array_equal(batch_of([2, 3]).input.positions, [0, 1, 0, 1, 2])
