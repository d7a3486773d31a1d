"""A score for each example: squared error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from bertillery.data.tables import Table
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.heads import problem_of
from finetune.data.sources import Source
from finetune.metrics import diverged, one_score
from finetune.predict import Predictor
from finetune.task import TaskSection
from finetune.task_types.base import Predicted
from finetune.task_types.vector import VectorType

_LARGEST = float(np.finfo(np.float32).max)


class Config(TaskSection):
    """A score for each text or pair of texts."""

    available_metrics = ("pearson", "spearman")
    is_score = True
    unlabelled = "a regression"

    range: tuple[float, float] | None = None
    """Lowest and highest score there can be."""

    def problems(self) -> list[str]:
        """The range is in order."""
        wrong = self.range is not None and self.range[0] >= self.range[1]
        return super().problems() + ["range is the lowest and the highest score, in this order"] * wrong


class Objective(Predictor):
    """Labels are scores (B,)."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``squared_error``, in squared units of the score."""
        labels = batch.targets["labels"]
        return {"squared_error": Term(F.mse_loss(logits[:, 0], labels, reduction="sum"), "examples")}

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """The score, (B, 1)."""
        return logits


class Type(VectorType):
    """Labels and predictions are scores (N,)."""

    objective_class = Objective
    problem = "regression"
    section: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def label_reader(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a number, or text that reads as one, to a number within ``task.range``."""
        return self._read_score

    def _read_score(self, cell: Any) -> float:
        try:
            if isinstance(cell, bool) or "_" in str(cell):  # float() takes both
                raise ValueError
            value = float(cell)
        except (TypeError, ValueError):
            raise ValueError(f"{cell!r} is no number") from None
        low, high = self.section.range or (-np.inf, np.inf)
        if not (abs(value) <= _LARGEST and low <= value <= high):
            raise ValueError(f"{cell!r} is no score from {low:g} to {high:g}")
        return value

    def label_array(self, labels: list[Any]) -> np.ndarray:
        """(N,) float32."""
        return np.array(labels, dtype=np.float32)

    def describe_labels(self, labels: np.ndarray) -> str:
        """Range and mean."""
        return f"scores {labels.min():g} to {labels.max():g}, mean {labels.mean():.3g}"

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Where it is one score; there are no labels to compare."""
        return config.num_labels == 1 and problem_of(config) == self.problem

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """The score, (N,)."""
        return outputs[:, 0]

    def constant(self, labels: np.ndarray) -> Any:
        """The mean score."""
        return labels.mean(axis=0, dtype=np.float64)

    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """Predictions that are not numbers, or nearly all alike."""
        return diverged(predictions) or one_score(predictions, labels)

    def format_prediction(self, prediction: Any) -> str:
        """Nine digits, which give every float32 back."""
        return f"{float(prediction):.9g}"

    def plain(self, prediction: Any) -> float:
        """The score."""
        return float(prediction)

    def fields(self, predicted: Predicted) -> dict[str, Sequence[Any]]:
        """The prediction, which is the score."""
        return {"prediction": [*map(self.plain, predicted.predictions)]}

    def parse_prediction(self, text: str) -> float:
        """The score."""
        return float(text)

    def distances(self, predicted: Predicted) -> np.ndarray:
        """In units of the score."""
        return np.abs(predicted.outputs[:, 0] - predicted.labels)
