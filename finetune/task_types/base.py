"""What differs between the kinds of task: one ``Objective`` and one ``Kind`` in each file of ``finetune/task_types``.

Legend: N examples of a split, M rows of outputs of some examples, K outputs of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.engine.objective import objective_module
from bertillery.models.encoders import labels_of
from finetune.config import FinetuneTrainSection
from finetune.examples import Examples
from finetune.predictor import Predictor
from finetune.splits import Split, Task
from finetune.task import TaskSection


@dataclass(frozen=True)
class Predicted:
    """A whole split with its predictions."""

    split: Split
    outputs: np.ndarray
    """(M, K) float32, in the order of the examples."""
    predictions: np.ndarray
    """(N,) or (N, L), as the labels of the split are."""

    @property
    def labels(self) -> np.ndarray:
        """Those of the split, which has some."""
        assert self.split.labels is not None
        return self.split.labels


class TaskType(ABC):
    """How a task is put to a model, and what is made of the model's outputs."""

    model_class: ClassVar[Any]
    """The stock class that is trained and exported."""
    pipeline: ClassVar[str | None]
    """What the Hub calls such a model."""

    usage: str = ""
    """What a model card says of how the model is opened, where that is not the stock way (Markdown)."""

    def __init__(self, section: TaskSection) -> None:
        self.section = section

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the model's configuration says of the task."""

    def head_fits(self, config: PreTrainedConfig) -> bool:
        """Whether the head that comes with a model of this configuration is for the task: of the task's kind, and for
        its labels. A configuration that names no class is taken for one of the right kind."""
        ending = self.model_class.__name__.removeprefix("AutoModel")
        made_for = config.architectures or [ending]
        return any(name.endswith(ending) for name in made_for) and self.labels_fit(config)

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Whether a head of the task's kind is for its labels."""
        return labels_of(config) == dict(enumerate(self.section.labels))

    @abstractmethod
    def objective(self, model: PreTrainedModel) -> Predictor:
        """What is trained."""

    @abstractmethod
    def examples(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        training: FinetuneTrainSection | None = None,
    ) -> Examples:
        """The split as sequences of at most ``max_length`` tokens, to be predicted: an example for each of the split's,
        in its order. With ``training``, the examples to be trained on as that says."""

    @abstractmethod
    def decide(self, outputs: np.ndarray, examples: Examples, index: np.ndarray) -> np.ndarray:
        """What is predicted for some examples, from their outputs (M, K), end to end."""

    @abstractmethod
    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The task's metrics, in their order."""

    @abstractmethod
    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """What is wrong with predictions that do not depend on the example, or None."""

    @abstractmethod
    def baselines(self, task: Task, split: str) -> dict[str, dict[str, float]]:
        """The metrics on a labelled split that are reached without an encoder, by the name of what reaches them."""

    @abstractmethod
    def format_prediction(self, prediction: Any) -> str:
        """A prediction as a person would write it."""

    def format_label(self, label: Any) -> str:
        """A label as a person would write it."""
        return self.format_prediction(label)

    @abstractmethod
    def distances(self, predicted: Predicted) -> np.ndarray:
        """How far off each prediction is (N,): 0 for a perfect one."""

    def choose(self, predicted: Predicted) -> dict[str, float]:
        """Settle what is chosen on the first validation split and then holds for all, such as a threshold."""
        return {}

    def columns(self, predicted: Predicted) -> tuple[Sequence[str], np.ndarray]:
        """Names, and numbers (N, number of names) of each example that are written beside its prediction."""
        return (), np.empty((predicted.split.num_examples, 0))

    def write(self, folder: Path, predicted: Predicted) -> list[Path]:
        """Write a split's predictions as the official scorer reads them, where there is one; returns the files."""
        return []

    def ensemble(self, files: Sequence[Path]) -> dict[str, float]:
        """The metrics of the mean of what several models wrote for one split; none where that is not defined."""
        return {}

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """Draw the first validation split's predictions; returns the pictures."""
        return []


def task_type_of(section: TaskSection) -> TaskType:
    """The kind of a task: that of the file in ``finetune/task_types`` which ``task.type`` names."""
    return objective_module("finetune.task_types", {"type": section.type}).Type(section)
