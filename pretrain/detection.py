"""How well one class is told from another, as sums: what the parts of a batch report can be added up.

Precision, recall and the area under the ROC curve are no means over a count that is known beforehand. They are
functions of a few sums, and only those are made here; :class:`engine.objective.Term` says what becomes of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.objective import Term

_BINS, _REACH = 512, 16.0


def detection_terms(logits: Tensor, positive: Tensor, count: str) -> dict[str, Term]:
    """Reported terms for ``logits`` (T,), above 0 for the class that ``positive`` (T,) marks; ``count`` names T.

    ``discriminator_accuracy``, ``precision``, ``recall``, ``auc`` and ``replaced``, the share of the positive.
    """
    logits = logits.detach()
    guessed = logits > 0
    hits = (guessed & positive).sum()
    return {
        "discriminator_accuracy": Term((guessed == positive).sum(), count, weight=0.0),
        "precision": Term(torch.stack([hits, guessed.sum()]), count, weight=0.0, value=ratio),
        "recall": Term(torch.stack([hits, positive.sum()]), count, weight=0.0, value=ratio),
        "auc": Term(histograms(logits, positive), count, weight=0.0, value=area_under_roc),
        "replaced": Term(positive.sum(), count, weight=0.0),
    }


def ratio(sums: list[float], count: float) -> float:
    """The first sum over the second; 0 where there is nothing to divide by."""
    return sums[0] / sums[1] if sums[1] else 0.0


def histograms(logits: Tensor, positive: Tensor) -> Tensor:
    """(2 * bins,): how often the negatives' logits, then the positives', fall into bins of 1/16 from -16 to 16."""
    place = ((logits + _REACH) * (_BINS / (2 * _REACH))).long().clamp(0, _BINS - 1)
    place = place + _BINS * positive
    return logits.new_zeros(2 * _BINS, dtype=torch.float32).index_add_(0, place, torch.ones_like(logits))


def area_under_roc(sums: list[float], count: float) -> float:
    """How often a positive scores above a negative, ties by half, from :func:`histograms`; 0.5 if a class is empty."""
    negative, positive = np.array(sums).reshape(2, -1)
    pairs = negative.sum() * positive.sum()
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else 0.5
