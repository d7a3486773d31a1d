"""One of several labels for each example: cross-entropy, as in BERT's ``run_classifier.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.report.plot import plot_confusion
from finetune.metrics import OF_ONE_CLASS, class_report
from finetune.predict import Predictor
from finetune.task_types.base import Predicted
from finetune.task_types.class_weights import WeightedSection, weights_of_classes
from finetune.task_types.vector import VectorType


class Config(WeightedSection):
    """One label for each text or pair of texts."""

    available_metrics = (
        *("accuracy", "f1", "macro_f1", "matthews_correlation", "precision", "recall"),
        *("macro_precision", "macro_recall", "roc_auc"),
    )

    def problems(self) -> list[str]:
        """Scores of one class need two classes."""
        found = super().problems()
        for name in self.metrics:
            if name in OF_ONE_CLASS and len(self.labels) not in (0, 2):
                number = len(self.labels)
                found.append(f"{name} is that of the second of two labels, and there are {number}; use macro_{name}")
        return found


class Objective(Predictor):
    """Labels are class ids (B,)."""

    count: ClassVar[str] = "examples"
    """What has a label."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``cross_entropy`` in nats, and the accuracy."""
        labels = batch.targets["labels"]
        right = (logits.detach().argmax(-1) == labels).sum()
        return {
            "cross_entropy": Term(F.cross_entropy(logits, labels, self.class_weights, reduction="sum"), self.count),
            "accuracy": Term(right, self.count, weight=0.0),
        }

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Over the labels."""
        return logits.log_softmax(-1)

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Probabilities."""
        return logits.softmax(-1)


class Type(VectorType):
    """Labels and predictions are class ids (N,)."""

    objective_class = Objective
    problem = "single_label_classification"
    classes = True

    def weigh(self, labels: np.ndarray) -> None:
        """By the frequency of each label."""
        if isinstance(self.section, WeightedSection):
            counts = np.bincount(labels, minlength=len(self.section.labels))
            self.class_weights = weights_of_classes(self.section, counts)

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """The most probable label, int64 (N,)."""
        return outputs.argmax(-1)

    def constant(self, labels: np.ndarray) -> Any:
        """The most frequent label."""
        return np.bincount(labels).argmax()

    def told_alike(self, prediction: Any, labels: np.ndarray) -> str:
        """The label, and whether it is the most frequent one."""
        is_majority = prediction == self.constant(labels.astype(np.int64))
        return f"{'the majority class' if is_majority else 'the class'} {self.format_prediction(prediction)!r}"

    def format_prediction(self, prediction: Any) -> str:
        """The label's name."""
        return self.section.labels[int(prediction)]

    def parse_prediction(self, text: str) -> int:
        """The label's id."""
        return self.section.labels.index(text)

    def distances(self, predicted: Predicted) -> np.ndarray:
        """1 less the probability of the label."""
        _, probabilities = self.columns(predicted)
        return 1 - probabilities[np.arange(len(probabilities)), predicted.labels]

    def class_report(self, predicted: Predicted) -> list[list[str]]:
        """Precision, recall and F1 of each label."""
        return class_report(predicted.predictions, predicted.labels, self.section.labels)

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """The confusion matrix."""
        picture, title = folder / "confusion.png", f"{self.section.name}, {predicted.split.name}"
        plot_confusion(predicted.predictions, predicted.labels, self.section.labels, picture, title)
        return [picture]
