"""Training of a Unigram tokenizer (Kudo 2018, as SentencePiece does it for ALBERT), the same every time.

The tokenizers library's own trainer adds floating-point numbers in the order of a hash table, so that scores and, at a
tie, pieces differ from run to run. Here the words are sorted and everything is counted in integers
(:mod:`pretrain.lattice`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from hashlib import blake2b
from itertools import groupby
from typing import Any, cast

import numpy as np
from transformers import AlbertTokenizer, PreTrainedTokenizerBase

from engine.config import InputError
from pretrain.lattice import Lattice, kind
from pretrain.tokenizer import TokenizerSection, fewest, too_few_pieces

SPECIALS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
"""Special tokens of a trained vocabulary, at ids 0 to 4, as in the published ones."""
SYMBOLS = '()".-–£€'
"""Characters that are always pieces of their own (README of the ALBERT repository)."""
_COVERAGE = 0.99995
_LONGEST_WORD, _MOST_WORDS = 64, 300_000
_SEEDS_PER_PIECE, _KEPT = 10, 0.75


def train_unigram(texts: Iterable[str], section: TokenizerSection) -> PreTrainedTokenizerBase:
    """Train an ALBERT tokenizer; the same texts in any order give the same vocabulary and scores.

    Lower-casing also strips accents and decomposes characters (NFKD), as in ALBERT; a cased tokenizer does neither.
    Raises ``ConfigError`` when the texts do not support a vocabulary of the size asked for, and ``InputError`` when
    they are no text.
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
    # A score of 0 beats all others, so a symbol is never swallowed by a longer piece.
    vocabulary = [(piece, 0.0) for piece in [*SPECIALS, *SYMBOLS]] + scored
    return AlbertTokenizer(
        vocab=vocabulary,
        do_lower_case=section.lowercase,
        keep_accents=not section.lowercase,
        model_max_length=512,
        # By default this class keeps the segments of a pair to itself.
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _count_words(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], np.ndarray]:
    """The normalised words, each opened by "▁", in the order of their code points, and how often they occur.

    Of several as frequent, those of text without spaces are chosen by a hash: they are many, and in the order of their
    code points it would be those that begin alike.
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
    """The word itself, or, if it is a sentence of a language without spaces, its runs of one script, no piece crossing
    from one to the next. Long words of nothing but ASCII are addresses and the like, which teach nothing."""
    if len(word) <= _LONGEST_WORD or word[1:].isascii():
        return [word]
    first, *rest = ("".join(run) for _, run in groupby(word[1:], kind))
    runs = "▁" + first, *rest
    return [run[start : start + _LONGEST_WORD] for run in runs for start in range(0, len(run), _LONGEST_WORD)]


def _characters(words: list[str], counts: np.ndarray) -> list[str]:
    """The characters that make up nearly all text, the most frequent first, ties by code point."""
    occurrences: Counter[str] = Counter()
    for word, count in zip(words, counts.tolist(), strict=True):
        for character in word:
            occurrences[character] += count
    order = sorted((c for c in occurrences if c not in SYMBOLS), key=lambda c: (-occurrences[c], c))
    covered = np.cumsum([occurrences[character] for character in order])
    return order[: int(np.searchsorted(covered, _COVERAGE * covered[-1])) + 1]
