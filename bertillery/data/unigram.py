"""Training of a Unigram tokenizer (Kudo 2018, section 3.2) as SentencePiece does it for ALBERT, deterministically.

The tokenizers library's own trainer adds floating-point numbers in the order of a hash table: even with one thread, the
scores and the order of its pieces differ from run to run. Here the words are sorted and counts are integers.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import blake2b
from itertools import groupby
from typing import Any, cast

import numpy as np
from transformers import AlbertTokenizer, PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.data.tokenizer import TokenizerSection, fewest, too_few_pieces
from bertillery.engine.rng import key

SPECIALS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
"""Special tokens, at ids 0 to 4, as in the published vocabularies."""
SYMBOLS = '()".-–£€'
"""Characters that are always single pieces (README of the ALBERT repository)."""
_COVERAGE = 0.99995
_LONGEST_WORD, _MOST_WORDS = 64, 300_000
_SEEDS_PER_PIECE, _KEPT = 10, 0.75
_LONGEST_PIECE = 16
_UNKNOWN_SCORE = -100.0
_DECIMALS = 4
"""Scores are rounded, so machines that differ in the last bit give the same vocabulary."""


def train_unigram(texts: Iterable[str], section: TokenizerSection) -> PreTrainedTokenizerBase:
    """Train an ALBERT tokenizer; the same texts in any order give the same vocabulary and scores.

    Lower-casing also strips accents and decomposes characters (NFKD), as in ALBERT; a cased tokenizer does neither.
    Raises ``ConfigError`` if the texts do not support a vocabulary of this size, and ``InputError`` if they have no
    words.
    """
    words, counts = _count_words(texts, _tokenizer([], section))
    if not words:
        raise InputError(
            f"the text to train a vocabulary on has no word of less than {_LONGEST_WORD} characters; check data.path "
            "and data.text, separate words by spaces, or give an existing tokenizer: tokenizer.path"
        )
    wanted = section.vocab_size - len(SPECIALS) - len(SYMBOLS)
    characters, seeds = _characters(words, counts)[:wanted], _SEEDS_PER_PIECE * wanted
    over = cache(lambda n: Lattice(words, counts, sorted(characters[:n]), SYMBOLS, section.min_frequency, seeds))
    # A small vocabulary keeps half its pieces for what is longer than a character.
    least = min(len(characters), wanted // 2)
    lattice = over(fewest(least, len(characters), lambda number: over(number).num_pieces >= wanted))
    if lattice.num_pieces < wanted:
        raise too_few_pieces(section, lattice.num_pieces + len(SPECIALS) + len(SYMBOLS))
    lattice.estimate()
    while lattice.num_pieces > wanted:
        lattice.prune(max(wanted, int(lattice.num_pieces * _KEPT)))
        lattice.estimate()
    return _tokenizer(sorted(lattice.scored(), key=lambda pair: (-pair[1], pair[0])), section)


def _tokenizer(scored: list[tuple[str, float]], section: TokenizerSection) -> PreTrainedTokenizerBase:
    # No score is above 0, so a symbol never becomes part of a longer piece.
    vocabulary = [(piece, 0.0) for piece in [*SPECIALS, *SYMBOLS]] + scored
    return AlbertTokenizer(
        vocab=vocabulary,
        do_lower_case=section.lowercase,
        keep_accents=not section.lowercase,
        model_max_length=512,
        # By default this class does not return token_type_ids.
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _count_words(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], np.ndarray]:
    """The normalised words, each with a "▁" in front, in the order of their code points, and their counts.

    Among equally frequent words of text without spaces a hash decides: they are many, and by code point it would be
    those that begin alike.
    """
    normalizer = cast(Any, tokenizer).backend_tokenizer.normalizer
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text.split())
    words: Counter[str] = Counter()
    for word, count in raw.items():
        for part in normalizer.normalize_str(word).split():
            for run in _runs("▁" + part):
                words[run] += count
    frequent = sorted(
        (word for word in words if len(word) <= _LONGEST_WORD),
        key=lambda word: (-words[word], "" if word[0] == "▁" else blake2b(word.encode()).hexdigest(), word),
    )
    kept = sorted(frequent[:_MOST_WORDS])
    return kept, np.array([words[word] for word in kept], np.int64)


def _runs(word: str) -> list[str]:
    """The word itself, or, for a sentence of a language without spaces, its runs of one script, which no piece crosses.

    Long words of ASCII alone are addresses and the like, which are left out later.
    """
    if len(word) <= _LONGEST_WORD or word[1:].isascii():
        return [word]
    first, *rest = ("".join(run) for _, run in groupby(word[1:], script))
    runs = "▁" + first, *rest
    return [run[start : start + _LONGEST_WORD] for run in runs for start in range(0, len(run), _LONGEST_WORD)]


def _characters(words: list[str], counts: np.ndarray) -> list[str]:
    """The characters that make up nearly all text, by falling frequency, then by code point."""
    occurrences: Counter[str] = Counter()
    for word, count in zip(words, counts.tolist(), strict=True):
        for character in word:
            occurrences[character] += count
    order = sorted((c for c in occurrences if c not in SYMBOLS), key=lambda c: (-occurrences[c], c))
    covered = np.cumsum([occurrences[character] for character in order])
    return order[: int(np.searchsorted(covered, _COVERAGE * covered[-1])) + 1]


@cache
def script(character: str) -> str:
    """The script of a letter, or ``digit`` or ``mark``."""
    if character.isdigit():
        return "digit"
    if not unicodedata.category(character).startswith(("L", "M")):
        return "mark"
    name = unicodedata.name(character, "?").split()[0]
    return "HAN" if name in ("CJK", "HIRAGANA", "KATAKANA") else name


class Lattice:
    """The P candidate pieces of a vocabulary and where they occur in the N characters of all words.

    ``_edges[n - 1, p]`` (16, N) is the number of the piece that the n characters from position p form: P if they form
    none, and P + 1 for an unknown character.
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
        """Number of pieces, without the symbols."""
        return int((~self._fixed).sum())

    def estimate(self) -> None:
        """Count the pieces in the best segmentations and score them by their log share, twice."""
        for _ in range(2):
            self._count = self._count_pieces()
            self._set_scores(np.maximum(self._count, 0.5))

    def prune(self, number: int) -> None:
        """Keep the alphabet, and the pieces without which the likelihood of the text would fall most."""
        self._select(self._fixed | self._best_by(self._count * self._gain(), number))
        self._set_scores(np.maximum(self._count, 0.5))

    def scored(self) -> Iterator[tuple[str, float]]:
        """Pieces and their scores, without the symbols."""
        for i in np.flatnonzero(~self._fixed):
            points = self._points[self._first[i] : self._first[i] + self._length[i]]
            yield points.tobytes().decode("utf-32-le"), float(self._scores[i])

    def _seed(self, known: np.ndarray, symbols: np.ndarray, min_frequency: int) -> None:
        """Number the known characters, and all longer substrings that are frequent enough."""
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
            # A string is never more frequent than what it begins with.
            positions = positions[often[piece] & (room[positions] > size)]
            hashes[positions] = key(hashes[positions], points[positions + size])
        self._hash, self._first, self._length, self._value = map(np.concatenate, zip(*found, strict=True))
        self._fixed = (self._length == 1) & np.isin(points[self._first], symbols)
        unknown = self._edges[0] < 0
        self._edges[self._edges < 0] = total
        self._edges[0, unknown] = total + 1

    def _room(self, known: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """The length of the longest piece that may begin at each character, (N,).

        As by default in SentencePiece, a piece is of one script, or of digits, or of marks, and within a word. The "▁"
        that opens a word belongs to what follows.
        """
        characters, index = np.unique(self._points, return_inverse=True)
        names = [script(chr(point)) for point in characters.tolist()]
        scripts = np.unique(names, return_inverse=True)[1][index]
        opening = self._starts[self._lengths > 1]
        scripts[opening] = scripts[opening + 1]
        alone = ~np.isin(self._points, known) | np.isin(self._points, symbols)
        last = np.append(np.diff(scripts) != 0, True) | alone | np.append(alone[1:], True)
        last[self._starts + self._lengths - 1] = True
        ends, places = np.flatnonzero(last), np.arange(len(scripts))
        return ends[np.searchsorted(ends, places)] + 1 - places

    def _best_by(self, value: np.ndarray, number: int) -> np.ndarray:
        """Which pieces to keep, (P,) bool: single characters, and the best, up to ``number`` without the symbols."""
        value = np.where(self._length == 1, np.inf, value)
        order = np.lexsort((self._hash, -self._value, -value))
        order = order[~self._fixed[order]]
        chosen = np.zeros(len(value), bool)
        chosen[order[:number]] = True
        return chosen

    def _select(self, kept: np.ndarray) -> None:
        """Drop all pieces but those in ``kept``, (P,) bool, and number these anew."""
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
        """Occurrences of each piece in the best segmentations of all words, (P,)."""
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
        """The score of each piece minus that of its best segmentation into others, in nats, (P,)."""
        order, base, best, _ = self._cut(self._first, self._length, whole=False)
        otherwise = np.empty(len(order))
        otherwise[order] = best[base + self._length[order]]
        # A character has no other segmentation; it is kept in any case.
        return np.where(self._length == 1, 0.0, self._scores[:-2] - otherwise)

    def _cut(
        self, starts: np.ndarray, lengths: np.ndarray, *, whole: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The best segmentation (Viterbi) of spans of the text; without ``whole``, into at least two pieces.

        A cell stands for a prefix of a span. Returns the order of the spans, where the cells of each begin, and for
        each cell the score and the length of the last piece; of equally good segmentations, that with the shortest.
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
