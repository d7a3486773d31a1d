"""One of several labels for each example: cross-entropy, as in BERT's ``run_classifier.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from finetune.report import plot_confusion
from finetune.task_types.base import Predicted
from finetune.task_types.sequences import SequencePredictor, SequenceType


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

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Over the labels."""
        return logits.log_softmax(-1)

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Probabilities."""
        return logits.softmax(-1)


class Type(SequenceType):
    """Labels and predictions are class ids (N,)."""

    problem = "single_label_classification"

    def objective(self, model: PreTrainedModel) -> Objective:
        """With cross-entropy."""
        return Objective(model)

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """The most probable label, int64 (N,)."""
        return outputs.argmax(-1)

    def format_prediction(self, prediction: Any) -> str:
        """The label's name."""
        return self.section.labels[int(prediction)]

    def parse_prediction(self, text: str) -> int:
        """The label's id."""
        return self.section.labels.index(text)

    def distances(self, predicted: Predicted) -> np.ndarray:
        """1 less the probability of the label."""
        return 1 - predicted.outputs[np.arange(len(predicted.labels)), predicted.labels]

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """Which label was taken for which."""
        picture, title = folder / "confusion.png", f"{self.section.name}, {predicted.split.name}"
        plot_confusion(predicted.predictions, predicted.labels, self.section.labels, picture, title)
        return [picture]
