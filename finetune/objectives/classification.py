"""One of several labels for each example: cross-entropy, as in BERT's ``run_classifier.py``."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from engine.batch import PackedBatch
from engine.objective import Term
from finetune.model import SequencePredictor

PROBLEM = "single_label_classification"


class Objective(SequencePredictor):
    """Labels are class ids (B,)."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``cross_entropy`` in nats, and the share of right answers."""
        labels = batch.targets["labels"]
        right = (logits.detach().argmax(-1) == labels).sum()
        return {
            "cross_entropy": Term(F.cross_entropy(logits, labels, reduction="sum"), "examples"),
            "right": Term(right, "examples", weight=0.0),
        }

    def outputs(self, logits: Tensor) -> Tensor:
        """Probabilities."""
        return logits.softmax(-1)

    @staticmethod
    def decide(outputs: np.ndarray) -> np.ndarray:
        """The most probable label, int64 (N,)."""
        return outputs.argmax(-1)
