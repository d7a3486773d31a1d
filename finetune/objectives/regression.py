"""A score for each example: squared error."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from engine.batch import PackedBatch
from engine.objective import Term
from finetune.model import SequencePredictor

PROBLEM = "regression"


class Objective(SequencePredictor):
    """Labels are scores (B,)."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``squared_error``, in squared units of the score."""
        labels = batch.targets["labels"]
        return {"squared_error": Term(F.mse_loss(logits[:, 0], labels, reduction="sum"), "examples")}

    def outputs(self, logits: Tensor) -> Tensor:
        """The score, (B, 1)."""
        return logits

    @staticmethod
    def decide(outputs: np.ndarray) -> np.ndarray:
        """The score, (N,)."""
        return outputs[:, 0]
