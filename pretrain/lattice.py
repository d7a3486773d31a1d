"""All ways to cut words into pieces, and the search for the pieces worth keeping: Unigram training in integers.

The pieces start as the substrings of the largest frequency times length. In turn, the best segmentation of every word
gives the pieces' counts and so their scores ("hard" expectation-maximisation), and the pieces that would be missed
least are dropped. All words are cut in lockstep, as array operations.

Legend: W distinct words, N characters of them laid end to end, P pieces.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache

import numpy as np

from engine.keyed import key

_LONGEST_PIECE = 16
_UNKNOWN_SCORE = -100.0
_DECIMALS = 4
"""Scores are rounded, so that a last bit that machines differ in changes no vocabulary."""


class Lattice:
    """``edges[n - 1, p]`` (16, N) is the piece that the n characters from position p on are.

    After the P pieces come two that are none: P where there is no piece, and P + 1 for an unknown character.
    """

    def __init__(
        self, words: list[str], counts: np.ndarray, alphabet: list[str], symbols: str, min_frequency: int, limit: int
    ) -> None:
        self._points = np.frombuffer("".join(words).encode("utf-32-le"), np.uint32)
        self._lengths = np.array([len(word) for word in words])
        self._starts, self._counts = np.cumsum(self._lengths) - self._lengths, counts
        known = np.array(sorted(set(map(ord, [*alphabet, *symbols])) & set(self._points.tolist())), np.uint32)
        self._seed(known, np.array(sorted(map(ord, symbols)), np.uint32), min_frequency)
        self._select(self._fixed | self._best_by(self._value, limit))
        self._set_scores(self._value)

    @property
    def num_pieces(self) -> int:
        """Pieces, the symbols not counted."""
        return int((~self._fixed).sum())

    def estimate(self, rounds: int = 2) -> None:
        """Count the pieces in the best segmentations, score them by the logarithm of their share, and again."""
        for _ in range(rounds):
            self._count = self._count_pieces()
            self._set_scores(np.maximum(self._count, 0.5))

    def prune(self, number: int) -> None:
        """Keep the alphabet and, of the others, the pieces whose loss would lower the text's likelihood most."""
        self._select(self._fixed | self._best_by(self._count * self._gain(), number))
        self._set_scores(np.maximum(self._count, 0.5))

    def scored(self) -> Iterator[tuple[str, float]]:
        """Pieces with their scores, without the symbols."""
        for i in np.flatnonzero(~self._fixed):
            points = self._points[self._first[i] : self._first[i] + self._length[i]]
            yield points.tobytes().decode("utf-32-le"), float(self._scores[i])

    def _seed(self, known: np.ndarray, symbols: np.ndarray, min_frequency: int) -> None:
        """Number the known characters and all longer substrings that are frequent enough."""
        points, weights = self._points, np.repeat(self._counts, self._lengths)
        self._edges = np.full((_LONGEST_PIECE, len(points)), -1, np.int32)
        room, hashes = self._room(known, symbols), key(points)
        positions, total = np.flatnonzero(np.isin(points, known)), 0
        found: list[tuple[np.ndarray, ...]] = []
        for size in range(1, _LONGEST_PIECE + 1):
            unique, at, piece = np.unique(hashes[positions], return_index=True, return_inverse=True)
            frequency = np.bincount(piece, weights[positions], len(unique))
            often = (frequency >= min_frequency) | (size == 1)
            number = np.where(often, total + np.cumsum(often) - 1, -1)
            self._edges[size - 1, positions] = number[piece]
            found.append((unique[often], positions[at][often], np.full(often.sum(), size), (frequency * size)[often]))
            total += int(often.sum())
            # Nothing longer is more frequent than what it begins with.
            positions = positions[often[piece] & (room[positions] > size)]
            hashes[positions] = key(hashes[positions], points[positions + size])
        self._hash, self._first, self._length, self._value = (
            np.concatenate(parts) for parts in zip(*found, strict=True)
        )
        self._fixed = (self._length == 1) & np.isin(points[self._first], symbols)
        unknown = self._edges[0] < 0
        self._edges[self._edges < 0] = total
        self._edges[0, unknown] = total + 1

    def _room(self, known: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """The longest piece that may begin at each character: one script, or digits, or marks, within a word: (N,).

        SentencePiece splits so by default. The "▁" that opens a word goes with whatever follows.
        """
        characters, index = np.unique(self._points, return_inverse=True)
        names = [kind(chr(point)) for point in characters.tolist()]
        numbers = {name: number for number, name in enumerate(sorted(set(names)))}
        kinds = np.array([numbers[name] for name in names])[index]
        opening = self._starts[self._lengths > 1]
        kinds[opening] = kinds[opening + 1]
        alone = ~np.isin(self._points, known) | np.isin(self._points, symbols)
        last = np.append(np.diff(kinds) != 0, True) | alone | np.append(alone[1:], True)
        last[self._starts + self._lengths - 1] = True
        ends, places = np.flatnonzero(last), np.arange(len(kinds))
        return ends[np.searchsorted(ends, places)] + 1 - places

    def _best_by(self, value: np.ndarray, number: int) -> np.ndarray:
        """The pieces to keep, (P,) bool: all single characters, and the best up to ``number`` without the symbols."""
        value = np.where(self._length == 1, np.inf, value)
        order = np.lexsort((self._hash, -self._value, -value))
        order = order[~self._fixed[order]]
        chosen = np.zeros(len(value), bool)
        chosen[order[:number]] = True
        return chosen

    def _select(self, kept: np.ndarray) -> None:
        """Forget all pieces but some, (P,) bool."""
        number = int(kept.sum())
        new = np.full(len(kept) + 2, number, np.int32)
        new[:-2][kept] = np.arange(number)
        new[-1] = number + 1
        self._edges = new[self._edges]
        for name in ("_hash", "_first", "_length", "_value", "_fixed", "_count"):
            if hasattr(self, name):
                setattr(self, name, getattr(self, name)[kept])

    def _set_scores(self, counts: np.ndarray) -> None:
        total = counts[~self._fixed].sum()
        scores = np.where(self._fixed, 0.0, np.round(np.log(counts / total), _DECIMALS))
        self._scores = np.concatenate([scores, [-np.inf, _UNKNOWN_SCORE]])

    def _count_pieces(self) -> np.ndarray:
        """How often each piece occurs in the best segmentation of all words, (P,)."""
        order, base, _, back = self._cut(self._starts, self._lengths)
        starts, place, weights = self._starts[order], self._lengths[order].copy(), self._counts[order]
        counts = np.zeros(len(self._fixed) + 2)
        while len(place):
            size = back[base + place].astype(np.int64)
            counts += np.bincount(self._edges[size - 1, starts + place - size], weights, len(counts))
            place = place - size
            going = place > 0
            base, starts, place, weights = base[going], starts[going], place[going], weights[going]
        return counts[:-2]

    def _gain(self) -> np.ndarray:
        """How much better each piece is than the best way to write it with others, in nats, (P,); 0 for a character."""
        order, base, best, _ = self._cut(self._first, self._length, whole=False)
        otherwise = np.empty(len(order))
        otherwise[order] = best[base + self._length[order]]
        # A character has no other way; it is kept in any case.
        return np.where(self._length == 1, 0.0, self._scores[:-2] - otherwise)

    def _cut(
        self, starts: np.ndarray, lengths: np.ndarray, *, whole: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The best segmentation of spans of the text; without ``whole``, into two pieces at least.

        Returns the order of the spans, where each has its cells, and per cell (one for each prefix of a span) the score
        and the length of the last piece. Of equally good segmentations, the one with the shortest last piece.
        """
        order = np.argsort(-lengths, kind="stable")
        starts, lengths = starts[order], lengths[order]
        base = np.cumsum(lengths + 1) - (lengths + 1)
        best, back = np.full(int((lengths + 1).sum()), -np.inf), np.zeros(int((lengths + 1).sum()), np.int8)
        best[base] = 0.0
        for end in range(1, int(lengths[0]) + 1):
            number = int(np.searchsorted(-lengths, -end, side="right"))
            cells = base[:number] + end
            top, size_of = np.full(number, -np.inf), np.zeros(number, np.int8)
            for size in range(1, min(end, _LONGEST_PIECE) + 1):
                value = best[cells - size] + self._scores[self._edges[size - 1, starts[:number] + end - size]]
                if not whole and size == end:
                    value[lengths[:number] == end] = -np.inf
                better = value > top
                top[better], size_of[better] = value[better], size
            best[cells], back[cells] = top, size_of
        return order, base, best, back


@cache
def kind(character: str) -> str:
    """Script of a letter, or what else a character is."""
    if character.isdigit():
        return "digit"
    if not unicodedata.category(character).startswith(("L", "M")):
        return "mark"
    script = unicodedata.name(character, "?").split()[0]
    return "HAN" if script in ("CJK", "HIRAGANA", "KATAKANA") else script
