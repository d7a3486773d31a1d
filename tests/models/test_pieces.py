"""Pieces of large tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bertillery.models.layers.pieces import at_a_time, few_at_a_time


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("most", [1, 70, 10_000])
def test_every_row_is_in_one_piece_and_pieces_are_as_large_as_they_may_be(threads: int, most: int) -> None:
    logits = torch.arange(13 * 30).view(13, 30)
    pieces = [logits[rows] for rows in few_at_a_time(logits, most)]
    assert torch.equal(torch.cat(pieces), logits)
    for piece in pieces[:-1]:
        assert len(piece) == max(1, at_a_time(most) // 30)
    assert len(pieces[-1]) <= max(1, at_a_time(most) // 30)


def test_each_of_several_threads_has_more_than_one_alone(threads: int) -> None:
    assert at_a_time(100) >= 100 * threads
    assert (at_a_time(100) == 100 * threads) == (threads == 1)
