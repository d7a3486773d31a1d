"""Any number of labels for each example: binary cross-entropy of each."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from engine.batch import PackedBatch
from engine.objective import Term
from finetune.model import SequencePredictor

PROBLEM = "multi_label_classification"


class Objective(SequencePredictor):
    """Labels are 0 or 1 for each name, (B, L)."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``binary_cross_entropy`` in nats, the mean over the labels as in transformers' heads, and exact matches."""
        labels = batch.targets["labels"]
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[1]
        right = ((logits.detach() > 0) == (labels > 0)).all(-1).sum()
        return {
            "binary_cross_entropy": Term(loss, "examples"),
            "right": Term(right, "examples", weight=0.0),
        }

    def outputs(self, logits: Tensor) -> Tensor:
        """Probability of each label."""
        return logits.sigmoid()

    @staticmethod
    def decide(outputs: np.ndarray) -> np.ndarray:
        """1 where a label is more probable than not, int64 (N, L)."""
        return (outputs > 0.5).astype(np.int64)
