"""BERT's masks: which tokens are predicted, and what replaces them.

Masks are pure functions of the tokens and the examples' keys. Legend: B examples, T tokens, U units (tokens, or words
of several tokens), M predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import Section
from bertillery.config.types import Count, Share
from bertillery.data.tokenizer import starts_of_words
from bertillery.engine.batch import PackedBatch, pack, ranges
from bertillery.engine.rng import integers, key, uniform
from bertillery.models.load import vocabulary_size
from pretrain.examples import FlatExamples


class MaskingSection(Section):
    """BERT's masking."""

    rate: Share = 0.15
    """Share of the tokens that are predicted; 0.3 works better for some (Wettig et al. 2023)."""
    max_predictions: Count | None = None
    """Most predictions in an example; where not given, the rate's share of a full sequence, rounded up (20, 77)."""
    whole_words: bool = False
    """Choose words, not tokens."""
    longest_ngram: Annotated[int, Field(ge=1, le=10)] = 1
    """Choose runs of up to so many words (or tokens), short ones more often; ALBERT's is 3."""

    def most(self, sequence_length: int) -> int:
        """The most predictions in an example of this sequence length."""
        return self.max_predictions or int(np.ceil(self.rate * sequence_length))

    def predicted(self, sequence_length: int) -> str:
        """How many tokens of a full example are predicted, and whether ``max_predictions`` limits them."""
        most, wanted = self.most(sequence_length), int(num_predictions(sequence_length, self.rate, sequence_length))
        if most >= wanted:
            return f"{wanted} of {sequence_length} tokens"
        return (
            f"{most} of {sequence_length} tokens: objective.masking.max_predictions={self.max_predictions} decides, "
            f"not the rate of {self.rate:g}, which would be {wanted} (max_predictions=null)"
        )


class Masking:
    """Masks examples as a section says, and packs them."""

    def __init__(self, section: MaskingSection, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> None:
        """Raises ``ConfigError`` for whole words with a tokenizer whose pieces do not mark them."""
        self._section, self._maximum = section, section.most(sequence_length)
        self._starts_word = starts_of_words(tokenizer) if section.whole_words else None
        self._mask_id, self._vocab_size = cast(int, tokenizer.mask_token_id), vocabulary_size(tokenizer)

    def __call__(self, examples: FlatExamples) -> PackedBatch:
        """The batch of the masked examples (:meth:`Masked.pack`)."""
        return mask_tokens(
            examples.input_ids,
            examples.lengths,
            examples.keys,
            ~examples.special,
            rate=self._section.rate,
            maximum=self._maximum,
            mask_id=self._mask_id,
            vocab_size=self._vocab_size,
            starts_word=None if self._starts_word is None else self._starts_word[examples.input_ids],
            longest_ngram=self._section.longest_ngram,
        ).pack(examples)


_ORDER, _ACTION, _WORD, _NGRAM = 101, 102, 103, 104
"""What a draw is for; part of its key."""


@dataclass(frozen=True)
class Masked:
    """The outcome of masking a batch."""

    input_ids: np.ndarray
    """(T,) corrupted."""
    positions: np.ndarray
    """(M,) rows of the flat batch that are predicted, ascending."""
    labels: np.ndarray
    """(M,) the original ids there."""

    def pack(self, examples: FlatExamples, **targets: np.ndarray) -> PackedBatch:
        """A batch with the targets ``masked_positions`` (M,), ``masked_ids`` (M,) and ``targets``, counted as
        ``masked``."""
        targets = {"masked_positions": self.positions, "masked_ids": self.labels, **targets}
        counts = {"masked": len(self.positions)}
        return pack(self.input_ids, examples.token_type_ids, examples.lengths, targets=targets, counts=counts)


def num_predictions(lengths: np.ndarray | int, rate: float, maximum: int) -> np.ndarray:
    """How many tokens of each example are predicted: ``min(maximum, max(1, round(rate * length)))``, special tokens
    counted.

    Rounds half to even, like the original (``create_pretraining_data.py``).
    """
    return np.minimum(maximum, np.maximum(1, np.rint(np.asarray(lengths) * rate))).astype(np.int64)


def mask_tokens(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    candidates: np.ndarray,
    *,
    rate: float,
    maximum: int,
    mask_id: int,
    vocab_size: int,
    starts_word: np.ndarray | None = None,
    longest_ngram: int = 1,
) -> Masked:
    """BERT's masking (Devlin et al. 2019, 3.1) of a flat batch.

    ``candidates`` (T,) marks the tokens that may be predicted (all but [CLS] and [SEP]). Of each example exactly
    :func:`num_predictions` are, in a random order; each of them independently becomes [MASK] (80 %), stays (10 %) or
    becomes a uniform row of the vocabulary, special rows and the token itself included (10 %). With ``starts_word``
    (T,), false for tokens that continue a word, whole words are chosen; one that would overshoot is passed over.

    With ``longest_ngram`` N, runs of up to N words are chosen (ALBERT's code; Lan et al. 2020, 4.1): at every word, in
    random order, a length n is drawn with a probability proportional to 1/n and shortened until the run fits; a run
    that meets an earlier one is skipped. Special tokens are removed first, so a run may reach across [SEP].
    """
    examples = np.repeat(np.arange(len(lengths)), lengths)
    offsets = ranges(lengths)
    wanted = num_predictions(lengths, rate, maximum)
    rows = np.flatnonzero(candidates)
    heads = rows if starts_word is None else rows[_opens_unit(rows, examples, starts_word)]
    sizes = np.diff(np.append(np.searchsorted(rows, heads), len(rows)))
    spans = np.ones(len(heads), np.int64)
    if longest_ngram > 1:
        spans = draw_ngrams(key(keys[examples[heads]], offsets[heads]), longest_ngram)
    chosen = _choose(examples[heads], sizes, spans, uniform(keys[examples[heads]], _ORDER, offsets[heads]), wanted)
    positions = rows[np.repeat(chosen, sizes)]
    token_keys = key(keys[examples[positions]], offsets[positions])
    return corrupt(input_ids, positions, token_keys, mask_id=mask_id, vocab_size=vocab_size)


def corrupt(input_ids: np.ndarray, positions: np.ndarray, keys: np.ndarray, *, mask_id: int, vocab_size: int) -> Masked:
    """Replace the tokens at ``positions`` (M,) by [MASK] (80 %) or a uniform row of the vocabulary (10 %), or keep them
    (10 %), each by its own key (M,)."""
    labels = input_ids[positions].astype(np.int64)
    corrupted = input_ids.astype(np.int64)
    action = uniform(keys, _ACTION)
    corrupted[positions] = np.where(
        action < 0.8, mask_id, np.where(action < 0.9, labels, integers(vocab_size, keys, _WORD))
    )
    return Masked(corrupted, positions, labels)


def _opens_unit(rows: np.ndarray, examples: np.ndarray, starts_word: np.ndarray) -> np.ndarray:
    """Whether a candidate opens a word; a continuation joins the one before it, across [SEP] too, like the original."""
    first_of_example = np.diff(examples[rows], prepend=-1) != 0
    return starts_word[rows] | first_of_example


def draw_ngrams(keys: np.ndarray, longest: int) -> np.ndarray:
    """A length from 1 to ``longest`` for each key, with a probability proportional to 1/length (6/11, 3/11, 2/11)."""
    shares = 1 / np.arange(1, longest + 1)
    return 1 + np.searchsorted(np.cumsum(shares / shares.sum())[:-1], uniform(keys, _NGRAM), side="right")


def _ranked(examples: np.ndarray, order: np.ndarray, first: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The units (U,) example by example, each in its ``order``; ``first`` and ``number`` are an example's units."""
    width = int(number.max(initial=0))
    if width * len(number) > 3 * len(order):  # examples of very different lengths
        return np.lexsort((order, examples))
    # Short rows of a table are sorted in half the time.
    table = np.full((len(number), width), np.inf)
    table[examples, np.arange(len(order)) - first[examples]] = order
    places = first[:, None] + np.argsort(table, axis=1, kind="stable")
    return places[np.arange(width) < number[:, None]]


def _choose(
    examples: np.ndarray, sizes: np.ndarray, spans: np.ndarray, order: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Walk through each example's units in the given order and take what still fits: bool (U,).

    From each unit on, ``spans`` (U,) units are taken together: fewer at the end of the example or where the budget is
    short, none where one of them is taken already.
    """
    first = np.searchsorted(examples, np.arange(len(wanted)))
    number = np.diff(np.append(first, len(examples)))
    ranked = _ranked(examples, order, first, number)
    chosen = np.zeros(len(examples), dtype=bool)
    if (sizes == 1).all() and (spans == 1).all():
        chosen[ranked] = ranges(number) < wanted[examples[ranked]]
        return chosen
    before = np.concatenate(([0], np.cumsum(sizes)))
    left = wanted.copy()
    for rank in range(int(number.max())):
        active = np.flatnonzero((rank < number) & (left > 0))
        if not len(active):
            break
        unit = ranked[first[active] + rank]
        end = np.minimum(unit + spans[unit], first[active] + number[active])
        for _ in range(int(spans.max())):
            end = np.where((end > unit) & (before[end] - before[unit] > left[active]), end - 1, end)
        free = np.ones(len(unit), dtype=bool)
        for step in range(int(spans.max())):
            free &= (unit + step >= end) | ~chosen[np.minimum(unit + step, len(chosen) - 1)]
        unit, end, active = unit[free], end[free], active[free]
        for step in range(int(spans.max())):
            chosen[(unit + step)[unit + step < end]] = True
        left[active] -= before[end] - before[unit]
    return chosen
