"""Joins of sequences: each sequence is in one, whole, and joining saves tokens."""

from __future__ import annotations

import random

import pytest

from prompting.branches import join_prefixes


def random_sequences(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    starts = [[rng.randrange(5) for _ in range(rng.randrange(1, 30))] for _ in range(6)]
    return [[*rng.choice(starts), *(rng.randrange(5) for _ in range(rng.randrange(6)))] for _ in range(40)]


@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_is_in_one_join(seed: int) -> None:
    sequences = random_sequences(seed)
    joins = list(join_prefixes(sequences))
    assert sorted(number for join in joins for number in join.members) == [*range(40)]
    for join in joins:
        ids = [*join.ids]
        assert join.size == len(ids) == join.parts.sum() <= sum(len(sequences[number]) for number in join.members)
        for member, number in enumerate(join.members):
            assert [ids[row] for row in join.rows(member)] == sequences[number]
    assert sum(join.size for join in joins) < sum(map(len, sequences))


def test_what_is_shared_is_there_once() -> None:
    answers = [[7] * 20 + [answer] * (1 + answer) for answer in range(4)]
    (join,) = join_prefixes(answers)
    assert join.parts.tolist() == [20, 1, 2, 3, 4]
    (same,) = join_prefixes([[1, 2, 3]] * 3)
    assert (same.prefix, same.branches) == ([1, 2, 3], [[], [], []])


def test_what_shares_little_stays_apart() -> None:
    assert len(list(join_prefixes([[1, *range(10, 30)], [1, *range(40, 60)]]))) == 2
    assert list(join_prefixes([])) == []
