"""Which sentences form an example, drawn for a block of documents at once, and the label of a pair of segments.

A walk through a document is sequential (where a chunk starts depends on what was drawn before), but the walks of
different documents are independent, so a block's walks advance in lockstep: one array operation moves all of them by
one example.

Every draw is a hash of (seed, epoch, document, turn of the walk), so a document's examples do not depend on the block.
Positions in ``sentences`` and ``ids`` are those of :class:`bertillery.data.prepared.TokenArrays`. Legend: W walks that
are under way, N examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.engine.rng import integers, key, uniform

ROW = np.dtype(
    [
        ("a_start", np.int64),
        ("a_length", np.int32),
        ("b_start", np.int64),
        ("b_length", np.int32),
        ("label", np.int8),
        ("length", np.int32),
        ("key", np.uint64),
    ]
)
"""An example: token ranges of its segments after truncation (a ``b_length`` of 0 means one segment), the pair's
label, its length with special tokens, and the key of all further draws."""

_TARGET, _TARGET_LENGTH, _SPLIT, _RANDOM, _DOCUMENT, _START, _FRONT = range(7)
_SEGMENT_TARGET, _SEGMENT_LENGTH, _SINGLE, _OVER = range(201, 205)
"""What a draw is for; part of its key."""


class Tokens(Protocol):
    """Token ids with sentence and document boundaries."""

    ids: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class PairLabel:
    """A binary label of each pair, counted as ``pairs``."""

    task: str
    """The name of its terms, such as ``nsp``."""
    target: str
    """Its name in ``PackedBatch.targets``."""
    meanings: tuple[str, str]
    """What 0 and 1 mean."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """Cross-entropy and accuracy of float32 logits (B, 2)."""
        labels, title = batch.targets[self.target], self.task.upper()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        right = (logits.detach().argmax(-1) == labels).sum()
        return {
            self.task: Term(loss, "pairs", title=f"{title} loss (nats)", baseline="label entropy"),
            f"{self.task}_accuracy": Term(
                right, "pairs", 0.0, title=f"{title} accuracy", direction="higher", baseline="majority class"
            ),
        }

    def baselines(self, batches: Sequence[PackedBatch]) -> dict[str, float]:
        """The labels' entropy, and the accuracy of always giving the more frequent label."""
        share = float(np.concatenate([batch.targets[self.target].numpy() for batch in batches]).mean())
        return {self.task: binary_entropy(share), f"{self.task}_accuracy": max(share, 1 - share)}


def binary_entropy(share: float) -> float:
    """Entropy, in nats, of a label that is 1 for this share."""
    return float(-sum(p * np.log(p) for p in (share, 1 - share) if p > 0))


class _Walks:
    """Walks that have not reached the end of their documents; positions are sentences or tokens."""

    def __init__(self, here: np.ndarray, last: np.ndarray, pass_key: np.ndarray) -> None:
        """Walks from ``here`` to ``last``, with a key for each document pass."""
        self.index = np.flatnonzero(here < last)
        """(W,) which document of those given."""
        self.here, self._last, self._pass_key = here[self.index], last, pass_key

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Step by step: where each walk is, where its document ends, and the key of its example (W,).

        The body of the loop calls :meth:`advance`.
        """
        turn = 0
        while len(self.index):
            yield self.here, self._last[self.index], key(self._pass_key[self.index], turn)
            turn += 1

    def advance(self, to: np.ndarray) -> None:
        """Move on; walks at the end of their document leave."""
        going = to < self._last[self.index]
        self.index, self.here = self.index[going], to[going]


def _walks(tokens: Tokens, documents: np.ndarray, seed: int, epoch: int) -> _Walks:
    """Walks through the sentences of documents."""
    first, last = (tokens.documents[documents + end].astype(np.int64) for end in (0, 1))
    return _Walks(first, last, key(seed, epoch, documents))


def next_sentence_pairs(
    tokens: Tokens, documents: np.ndarray, *, sequence_length: int, short_probability: float, seed: int, epoch: int
) -> np.ndarray:
    """BERT's sentence pairs of some documents (``create_pretraining_data.py``; Devlin et al. 2019, A.2).

    A walk fills a chunk with sentences up to a target length (the budget, or with ``short_probability`` a uniform
    length for the whole document pass), splits it, and takes as B the rest of the chunk (label 0) or, for half of the
    chunks and all chunks of one sentence, sentences from a random place of another document (label 1); the sentences
    of the chunk that a random B displaced open the next chunk. Pairs are cut to the budget of ``sequence_length`` - 3.

    One deviation: the other document is never the same one (the original gives up after ten draws, which matters only
    for a handful of documents). Returns rows of ``ROW`` (N,).
    """
    budget, sentences, parts = sequence_length - 3, tokens.sentences, []
    for walks, here, split, end, target, k in _chunks(tokens, documents, budget, short_probability, seed, epoch):
        is_random = (end - here == 1) | (uniform(k, _RANDOM) < 0.5)
        a_start, a_end = sentences[here], sentences[split]
        b_first, b_last = _random_next(tokens, documents[walks.index], target - (a_end - a_start), k)
        b_start = sentences[np.where(is_random, b_first, split)]
        b_end = sentences[np.where(is_random, b_last, end)]
        parts.append(_truncate(a_start, a_end, b_start, b_end, is_random, budget, k))
        walks.advance(np.where(is_random, split, end))
    return _joined(parts)


def sentence_order_pairs(
    tokens: Tokens,
    documents: np.ndarray,
    *,
    sequence_length: int,
    short_probability: float,
    single_segment: Literal["original", "drop"],
    seed: int,
    epoch: int,
) -> np.ndarray:
    """ALBERT's sentence pairs of some documents (its ``create_pretraining_data.py``; Lan et al. 2020, 3.1).

    Chunks and splits are those of :func:`next_sentence_pairs`; A and B are the two parts of the chunk, in order (label
    0) or, for half of the pairs, swapped (label 1). A chunk of one sentence has no order: ``original`` gives it
    sentences from a random place of another document and label 1, as the released code does; ``drop`` leaves it out.
    Such a chunk has no sentence that B displaced, so unlike in BERT a walk never goes back. Returns rows of ``ROW``
    (N,).
    """
    budget, sentences, parts = sequence_length - 3, tokens.sentences, []
    for walks, here, split, end, target, k in _chunks(tokens, documents, budget, short_probability, seed, epoch):
        single = end - here == 1
        swapped = ~single & (uniform(k, _RANDOM) < 0.5)
        start, middle, stop = sentences[here], sentences[split], sentences[end]
        a_start, a_end = np.where(swapped, middle, start), np.where(swapped, stop, middle)
        b_start, b_end = np.where(swapped, start, middle), np.where(swapped, middle, stop)
        if single_segment == "original":
            first, after = _random_next(tokens, documents[walks.index], target - (middle - start), k)
            b_start, b_end = np.where(single, sentences[first], b_start), np.where(single, sentences[after], b_end)
        rows = _truncate(a_start, a_end, b_start, b_end, swapped | single, budget, k)
        parts.append(rows if single_segment == "original" else rows[~single])
        walks.advance(end)
    return _joined(parts)


def full_segments(tokens: Tokens, documents: np.ndarray, *, sequence_length: int, seed: int, epoch: int) -> np.ndarray:
    """Segments of as many whole sentences as fit, within a document (Liu et al. 2019, 4.2, DOC-SENTENCES).

    RoBERTa found this input format best and chose another only because it makes batches uneven, which does not matter
    to packed batches. A sentence longer than a segment is cut, not dropped. Returns rows of ``ROW`` (N,) without a
    second segment.
    """
    sentences, parts = tokens.sentences, []
    first, last = (sentences[tokens.documents[documents + end]] for end in (0, 1))
    walks = _Walks(first, last, key(seed, epoch, documents))
    for start, stop, k in walks:
        reach = np.minimum(start + sequence_length - 2, stop)
        boundary = sentences[np.searchsorted(sentences, reach, side="right") - 1]
        end = np.where(boundary > start, boundary, reach)
        parts.append(_rows(start, end - start, 0, 0, 0, k))
        walks.advance(end)
    return _joined(parts)


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
    """ELECTRA's one or two segments of consecutive text (``build_pretraining_dataset.py``).

    Sentences are gathered until they reach the target length (``sequence_length``, or with ``short_probability``,
    drawn for each example, a uniform length from 5 on) or the document ends. The first segment takes sentences while it
    stays below half the target; the one that would carry it over goes to it by a coin; the rest are the second segment.
    With ``single_probability`` all are the first. What does not fit into ``sequence_length`` is thrown away.

    Two deviations: our units are sentences, the original's the lines of its files; and once a sentence went to the
    second segment all later ones follow, where the original lets a short one slip back into the first, whose text then
    has a gap (7 to 19 % of examples, measured on synthetic sentences). Returns rows of ``ROW`` (N,), label 0.
    """
    sentences, parts = tokens.sentences, []
    walks = _walks(tokens, documents, seed, epoch)
    for here, last, k in walks:
        short = uniform(k, _SEGMENT_TARGET) < short_probability
        target = np.where(short, 5 + integers(sequence_length - 4, k, _SEGMENT_LENGTH), sequence_length)
        end, start = _fill(sentences, here, target, last), sentences[here]
        half = (target - 3) // 2
        below = np.searchsorted(sentences, start + half) - 1  # the last boundary that is short of half
        split = np.clip(below, here + 1, end)
        open_still = (split < end) & (sentences[split] - start < half)
        split += open_still & (uniform(k, _OVER) < 0.5)
        split = np.where(uniform(k, _SINGLE) < single_probability, end, split)
        a = np.minimum(sentences[split] - start, sequence_length - 2)
        b = np.clip(sequence_length - a - 3, 0, sentences[end] - sentences[split])
        parts.append(_rows(start, a, sentences[split], b, 0, k))
        walks.advance(end)
    return _joined(parts)


_Chunks = tuple[_Walks, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _chunks(
    tokens: Tokens, documents: np.ndarray, budget: int, short_probability: float, seed: int, epoch: int
) -> Iterator[_Chunks]:
    """Step by step: the walks, and the first sentence, split and end of each one's chunk, its target length and key."""
    pass_key, walks = key(seed, epoch, documents), _walks(tokens, documents, seed, epoch)
    short = uniform(pass_key, _TARGET) < short_probability
    # The original draws the short target once per call, that is once per pass through a document.
    targets = np.where(short, 2 + integers(budget - 1, pass_key, _TARGET_LENGTH), budget)
    for here, last, k in walks:
        target = targets[walks.index]
        end = _fill(tokens.sentences, here, target, last)
        size = end - here
        # Uniform over the inner boundaries; a single sentence is all first part.
        split = here + np.where(size == 1, 1, 1 + integers(np.maximum(size - 1, 1), k, _SPLIT))
        yield walks, here, split, end, target, k


def _fill(sentences: np.ndarray, start: np.ndarray, target: np.ndarray, last: np.ndarray) -> np.ndarray:
    """End of the shortest run of sentences from ``start`` that reaches the target length; at least one sentence."""
    reached = np.searchsorted(sentences, sentences[start] + target)
    return np.minimum(np.maximum(reached, start + 1), last)


def _random_next(
    tokens: Tokens, documents: np.ndarray, target: np.ndarray, k: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sentences from a random place of another document, up to a target length: first and end, in sentences."""
    number = len(tokens.documents) - 1
    assert number > 1, "one document has no random next; the objective refuses such a corpus"
    other = (documents + 1 + integers(number - 1, k, _DOCUMENT)) % number
    first, last = tokens.documents[other], tokens.documents[other + 1]
    start = first + integers(last - first, k, _START)
    return start, _fill(tokens.sentences, start, target, last)


def _truncate(
    a_start: np.ndarray,
    a_end: np.ndarray,
    b_start: np.ndarray,
    b_end: np.ndarray,
    label: np.ndarray,
    budget: int,
    k: np.ndarray,
) -> np.ndarray:
    """Rows cut to the budget: a token at a time from the longer segment (B on a tie), front or back by a coin."""
    a, b = a_end - a_start, b_end - b_start
    excess = np.maximum(a + b - budget, 0)
    uneven = np.minimum(excess, np.abs(a - b))
    cut_a = np.where(a > b, uneven, 0) + (excess - uneven) // 2
    cut_b = excess - cut_a
    a_front, b_front = _coins(cut_a, key(k, _FRONT, 0)), _coins(cut_b, key(k, _FRONT, 1))
    return _rows(a_start + a_front, a - cut_a, b_start + b_front, b - cut_b, label, k)


def _coins(number: np.ndarray, k: np.ndarray) -> np.ndarray:
    """How many of ``number`` fair coins show heads, counted in the bits of hashes."""
    heads = np.zeros(len(number), np.int64)
    left, word = number.copy(), 0
    while (left > 0).any():
        bits = np.clip(left, 0, 64)
        mask = np.where(
            bits == 64, np.uint64(2**64 - 1), (np.uint64(1) << (bits % 64).astype(np.uint64)) - np.uint64(1)
        )
        heads += np.bitwise_count(key(k, word) & mask)
        left, word = left - 64, word + 1
    return heads


def _rows(a_start: Any, a_length: Any, b_start: Any, b_length: Any, label: Any, k: np.ndarray) -> np.ndarray:
    """Rows of ``ROW``; the length counts [CLS] and a [SEP] after each segment."""
    rows = np.empty(len(k), ROW)
    rows["a_start"], rows["a_length"], rows["b_start"], rows["b_length"] = a_start, a_length, b_start, b_length
    rows["label"], rows["key"] = label, k
    rows["length"] = rows["a_length"] + rows["b_length"] + np.where(rows["b_length"] > 0, 3, 2)
    return rows


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, ROW)
