"""Any number of labels for each example: binary cross-entropy of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from finetune.rows import join_names, split_names
from finetune.task_types.base import Predicted
from finetune.task_types.sequences import SequencePredictor, SequenceType


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

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """(B, L, 2): that a label holds, and that it does not."""
        return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), -1)

    def distributions(self, logits: Tensor) -> int:
        """One for each label."""
        return logits.shape[1]

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Probability of each label."""
        return logits.sigmoid()


class Type(SequenceType):
    """Labels and predictions are 0 or 1 for each name, (N, L)."""

    problem = "multi_label_classification"

    def objective(self, model: PreTrainedModel) -> Objective:
        """With binary cross-entropy."""
        return Objective(model)

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """1 where a label is more probable than not, int64 (N, L)."""
        return (outputs > 0.5).astype(np.int64)

    def format_prediction(self, prediction: Any) -> str:
        """Names with commas between, as csv has them; nothing where no label is given."""
        return join_names(name for name, on in zip(self.section.labels, prediction, strict=True) if on)

    def parse_prediction(self, text: str) -> list[float]:
        """A row of 0 and 1."""
        given = split_names(text)
        return [float(name in given) for name in self.section.labels]

    def distances(self, predicted: Predicted) -> np.ndarray:
        """That of the label which is furthest off."""
        return np.abs(predicted.outputs - predicted.labels).max(-1)
