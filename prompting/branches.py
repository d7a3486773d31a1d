"""Sequences that begin alike, joined so that what they share is computed once: a prompt and its possible answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

_SHARED = 4
"""A sequence joins others if it shares a quarter of its tokens with them: attention over a join is longer."""
_LONGEST = 4096
"""Tokens of a join at most."""


@dataclass(frozen=True)
class Join:
    """Sequences with a common prefix."""

    members: list[int]
    """Their numbers."""
    prefix: list[int]
    branches: list[list[int]]
    """What follows the prefix in each; it may be empty."""

    @property
    def size(self) -> int:
        """Tokens, with the prefix once."""
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def ids(self) -> Iterator[int]:
        """The tokens of the prefix and of the branches, end to end."""
        return chain(self.prefix, *self.branches)

    @property
    def parts(self) -> np.ndarray:
        """Lengths of the prefix and the branches."""
        return np.array([len(self.prefix), *map(len, self.branches)])

    def rows(self, member: int) -> np.ndarray:
        """Where the tokens of a member, which is counted from 0, lie in the prefix and branches end to end."""
        start = len(self.prefix) + sum(len(branch) for branch in self.branches[:member])
        return np.concatenate([np.arange(len(self.prefix)), np.arange(start, start + len(self.branches[member]))])


def join_prefixes(sequences: Sequence[list[int]]) -> Iterator[Join]:
    """All sequences, each in one join, where joining them saves tokens."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    members: list[int] = []
    shared = size = 0
    for number in order:
        sequence = sequences[number]
        common = _common(sequences[members[-1]], sequence, shared) if members else 0
        grown = size + (len(members) - 1) * shared + len(sequence) - len(members) * common
        saves = grown < size + len(sequence) and common * _SHARED >= len(sequence)
        if members and not (saves and grown <= _LONGEST):
            yield _joined(members, sequences, shared)
            members = []
        if not members:
            common = grown = len(sequence)
        members, shared, size = [*members, number], common, grown
    if members:
        yield _joined(members, sequences, shared)


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """Tokens with which both begin, up to ``most``."""
    pairs = zip(one[:most], other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(most, len(other)))


def _joined(members: list[int], sequences: Sequence[list[int]], shared: int) -> Join:
    first = sequences[members[0]]
    return Join(members, first[:shared], [sequences[number][shared:] for number in members])
