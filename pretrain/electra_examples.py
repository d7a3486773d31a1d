"""ELECTRA's examples: which sentences form one, which of its tokens the generator predicts.

Legend: B examples, T tokens, M predictions. Every draw is a hash of what it belongs to, as in :mod:`pretrain.pairs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.batch import ranges
from engine.keyed import integers, key, uniform
from pretrain.masking import num_predictions
from pretrain.pairs import ROW, Tokens

_TARGET, _TARGET_LENGTH, _SINGLE, _OVER, _PLACE, _ORDER, _HIDE, _SAMPLE = range(201, 209)
"""What a draw is for; part of its key."""

_HIDDEN_SHARE = 0.85


def segment_pairs(
    tokens: Tokens,
    documents: np.ndarray,
    *,
    sequence_length: int,
    single_probability: float,
    short_probability: float,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """One or two segments of consecutive text, without a sentence task (``build_pretraining_dataset.py``).

    Sentences are gathered until they reach the target length (``sequence_length``, or with ``short_probability``,
    drawn for each example, a uniform length from 5 on) or the document ends. The first segment takes sentences while it
    stays below half the target; the one that would carry it over goes to it by a coin; the rest are the second segment.
    With ``single_probability`` all are the first. What does not fit into ``sequence_length`` is thrown away.

    Two deviations: our units are sentences, the original's the lines of its files; and once a sentence went to the
    second segment all later ones follow, where the original lets a short one slip back into the first, whose text then
    has a gap (7 to 19 % of examples, measured on synthetic sentences). Returns rows of ``ROW``, label 0.
    """
    sentences = tokens.sentences
    here, last = tokens.documents[documents].astype(np.int64), tokens.documents[documents + 1].astype(np.int64)
    pass_key, parts, turn = key(seed, epoch, documents), [], 0
    going = np.flatnonzero(here < last)
    while len(going):
        k, start = key(pass_key[going], turn), here[going]
        short = uniform(k, _TARGET) < short_probability
        target = np.where(short, 5 + integers(sequence_length - 4, k, _TARGET_LENGTH), sequence_length)
        reached = np.searchsorted(sentences, sentences[start] + target)
        end = np.minimum(np.maximum(reached, start + 1), last[going])
        split = np.where(uniform(k, _SINGLE) < single_probability, end, _split(sentences, start, end, target, k))
        parts.append(_rows(sentences, start, split, end, sequence_length, k))
        here[going] = end
        going, turn = going[end < last[going]], turn + 1
    return np.concatenate(parts) if parts else np.empty(0, ROW)


def _split(sentences: np.ndarray, start: np.ndarray, end: np.ndarray, target: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Where the second segment begins, in sentences; ``end`` where there is none."""
    half = (target - 3) // 2
    below = np.searchsorted(sentences, sentences[start] + half) - 1  # the last boundary that is short of half
    split = np.clip(below, start + 1, end)
    open_still = (split < end) & (sentences[split] - sentences[start] < half)
    return split + (open_still & (uniform(k, _OVER) < 0.5))


def _rows(
    sentences: np.ndarray, start: np.ndarray, split: np.ndarray, end: np.ndarray, sequence_length: int, k: np.ndarray
) -> np.ndarray:
    rows = np.zeros(len(start), ROW)
    a = np.minimum(sentences[split] - sentences[start], sequence_length - 2)
    b = np.clip(sequence_length - a - 3, 0, sentences[end] - sentences[split])
    rows["a_start"], rows["a_length"] = sentences[start], a
    rows["b_start"], rows["b_length"] = sentences[split], b
    rows["length"], rows["key"] = a + b + 2 + (b > 0), k
    return rows


@dataclass(frozen=True)
class Slots:
    """What the generator sees and predicts."""

    input_ids: np.ndarray
    """(T,) with [MASK]."""
    positions: np.ndarray
    """(M,) rows of the flat batch; with replacement a row can come more than once."""
    labels: np.ndarray
    """(M,) the original ids there."""
    uniforms: np.ndarray
    """(M,) in [0, 1): the luck with which the generator's distribution there is sampled; one number to a row."""


def mask_slots(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    candidates: np.ndarray,
    *,
    rate: float,
    maximum: int,
    mask_id: int,
    replacement: bool,
) -> Slots:
    """ELECTRA's masking of a flat batch (``pretrain_helpers.py``).

    Exactly :func:`pretrain.masking.num_predictions` of each example's ``candidates`` (T,), drawn with or without
    replacement. Each draw independently becomes [MASK] (85 %) or stays (15 %); none becomes a random word. A row drawn
    twice is hidden if either draw hides it, and is sampled once: the original averages the two sampled ids.
    """
    number_of_examples = len(lengths)
    examples, offsets = np.repeat(np.arange(number_of_examples), lengths), ranges(lengths)
    rows = np.flatnonzero(candidates)
    number = np.bincount(examples[rows], minlength=number_of_examples)
    wanted = num_predictions(lengths, rate, maximum)
    if replacement:
        wanted = np.where(number > 0, wanted, 0)
        owner, turn = np.repeat(np.arange(number_of_examples), wanted), ranges(wanted)
        first = np.cumsum(number) - number
        positions = rows[first[owner] + integers(number[owner], keys[owner], _PLACE, turn)]
    else:
        order = np.lexsort((uniform(keys[examples[rows]], _ORDER, offsets[rows]), examples[rows]))
        positions = np.sort(rows[order[ranges(number) < np.repeat(wanted, number)]])
        owner, turn = examples[positions], offsets[positions]
    corrupted = input_ids.astype(np.int64)
    corrupted[positions[uniform(keys[owner], _HIDE, turn) < _HIDDEN_SHARE]] = mask_id
    return Slots(
        corrupted,
        positions,
        input_ids[positions].astype(np.int64),
        uniform(keys[owner], _SAMPLE, offsets[positions]),
    )
