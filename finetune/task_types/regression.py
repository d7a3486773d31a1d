"""A score for each example: squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from finetune.task_types.base import Predicted
from finetune.task_types.sequences import SequencePredictor, SequenceType, problem_of


class Objective(SequencePredictor):
    """Labels are scores (B,)."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``squared_error``, in squared units of the score."""
        labels = batch.targets["labels"]
        return {"squared_error": Term(F.mse_loss(logits[:, 0], labels, reduction="sum"), "examples")}

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """The score, (B, 1)."""
        return logits


class Type(SequenceType):
    """Labels and predictions are scores (N,)."""

    problem = "regression"

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Where it is one score; there are no labels to compare."""
        return config.num_labels == 1 and problem_of(config) == self.problem

    def objective(self, model: PreTrainedModel) -> Objective:
        """With squared error."""
        return Objective(model)

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """The score, (N,)."""
        return outputs[:, 0]

    def format_prediction(self, prediction: Any) -> str:
        """Nine digits, which give every float32 back."""
        return f"{float(prediction):.9g}"

    def parse_prediction(self, text: str) -> float:
        """The score."""
        return float(text)

    def distances(self, predicted: Predicted) -> np.ndarray:
        """In units of the score."""
        return np.abs(predicted.outputs[:, 0] - predicted.labels)
