"""Which tokens are predicted and what stands in their place: pure functions of the batch and the examples' keys.

Legend: B examples, T tokens, U units (tokens, or words of several tokens), M predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.keyed import integers, key, uniform

_ORDER, _ACTION, _WORD = 101, 102, 103
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


def num_predictions(lengths: np.ndarray, rate: float, maximum: int) -> np.ndarray:
    """How many tokens of each example are predicted: ``min(maximum, max(1, round(rate * length)))``, special tokens
    counted.

    Rounds half to even, like the original (``create_pretraining_data.py``).
    """
    return np.minimum(maximum, np.maximum(1, np.rint(lengths * rate))).astype(np.int64)


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
) -> Masked:
    """BERT's masking (Devlin et al. 2019, 3.1) of a flat batch.

    ``candidates`` (T,) marks the tokens that may be predicted (all but [CLS] and [SEP]). Of each example exactly
    :func:`num_predictions` are, in a random order; each of them independently becomes [MASK] (80 %), stays (10 %) or
    becomes a uniform row of the vocabulary, special rows and the token itself included (10 %). With ``starts_word``
    (T,), false for tokens that continue a word, whole words are chosen; one that would overshoot is passed over.
    """
    examples = np.repeat(np.arange(len(lengths)), lengths)
    offsets = np.arange(len(input_ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    wanted = num_predictions(lengths, rate, maximum)
    rows = np.flatnonzero(candidates)
    heads = rows if starts_word is None else rows[_opens_unit(rows, examples, starts_word)]
    sizes = np.diff(np.append(np.searchsorted(rows, heads), len(rows)))
    chosen = _choose(examples[heads], sizes, uniform(keys[examples[heads]], _ORDER, offsets[heads]), wanted)
    positions = rows[np.repeat(chosen, sizes)]
    labels = input_ids[positions].astype(np.int64)
    corrupted = input_ids.astype(np.int64)
    k = key(keys[examples[positions]], offsets[positions])
    action = uniform(k, _ACTION)
    corrupted[positions] = np.where(
        action < 0.8, mask_id, np.where(action < 0.9, labels, integers(vocab_size, k, _WORD))
    )
    return Masked(corrupted, positions, labels)


def _opens_unit(rows: np.ndarray, examples: np.ndarray, starts_word: np.ndarray) -> np.ndarray:
    """Whether a candidate opens a word; a continuation joins the one before it, across [SEP] too, like the original."""
    first_of_example = np.diff(examples[rows], prepend=-1) != 0
    return starts_word[rows] | first_of_example


def _choose(examples: np.ndarray, sizes: np.ndarray, order: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Walk through each example's units in the given order and take what still fits: bool (U,)."""
    ranked = np.lexsort((order, examples))
    first = np.searchsorted(examples, np.arange(len(wanted)))
    number = np.diff(np.append(first, len(examples)))
    chosen = np.zeros(len(examples), dtype=bool)
    if (sizes == 1).all():
        rank = np.arange(len(ranked)) - np.repeat(first, number)
        chosen[ranked] = rank < wanted[examples[ranked]]
        return chosen
    left = wanted.copy()
    for rank in range(int(number.max())):
        active = np.flatnonzero((rank < number) & (left > 0))
        if not len(active):
            break
        unit = ranked[first[active] + rank]
        fits = sizes[unit] <= left[active]
        chosen[unit[fits]] = True
        left[active[fits]] -= sizes[unit[fits]]
    return chosen
