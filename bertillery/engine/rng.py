"""Random numbers without a state: every number is a hash of a key.

The numbers of a sequential generator depend on everything drawn before, and so on batches, processes, workers and
restarts. Here ``uniform(key(seed, epoch, example), position)`` is the same number everywhere. The mixing function is
the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood 2014; Stafford's variant 13 constants).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Keys = np.ndarray[Any, np.dtype[np.uint64]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(x: Keys) -> Keys:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def key(*parts: Any) -> Keys:
    """Hash integers or integer arrays (broadcast together) into 64-bit keys; the order of the parts matters."""
    result = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            part = np.asarray(part).astype(np.int64, copy=False).view(np.uint64) if not _is_keys(part) else part
            result = _mix((result + _GOLDEN) ^ _mix(part + _GOLDEN))
    return result


def _is_keys(part: Any) -> bool:
    return isinstance(part, np.ndarray | np.generic) and part.dtype == np.uint64


def uniform(*parts: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Uniform numbers in [0, 1) for the given parts of a key."""
    return np.asarray((key(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def integers(high: Any, *parts: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Uniform integers in [0, high); ``high`` broadcasts with the parts."""
    return np.minimum((uniform(*parts) * high).astype(np.int64), np.asarray(high) - 1)


class Permutation:
    """A keyed bijection of ``range(size)``, evaluated point by point without a table.

    A balanced Feistel network over the next even power of two with cycle walking (Black and Rogaway 2002).
    """

    _rounds = 6

    def __init__(self, size: int, *parts: Any) -> None:
        assert size > 0
        self.size = size
        self._half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = [key(*parts, turn) for turn in range(self._rounds)]

    def __call__(self, index: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Images of the given positions, each in ``range(size)``."""
        value = np.atleast_1d(np.asarray(index)).astype(np.uint64)
        outside = np.ones(value.shape, dtype=bool)
        while outside.any():
            value[outside] = self._encrypt(value[outside])
            outside = value >= self.size
        return value.astype(np.int64)

    def _encrypt(self, value: Keys) -> Keys:
        left, right = value >> self._half, value & self._mask
        for turn in self._keys:
            left, right = right, left ^ (key(turn, right) & self._mask)
        return (left << self._half) | right
