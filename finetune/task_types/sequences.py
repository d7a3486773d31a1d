"""Tasks with one vector of outputs for each example: what their kinds have in common.

Legend: N examples, B of a batch, K outputs of each, L labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.engine.batch import PackedBatch
from bertillery.models.encoders import sequence_logits
from bertillery.report.table import read_tsv
from finetune.baselines import baselines
from finetune.config import FinetuneTrainSection
from finetune.examples import Examples, TextExamples
from finetune.metrics import degenerate, scores
from finetune.predictor import Predictor
from finetune.splits import Split, Task
from finetune.task_types.base import Predicted, TaskType


def label_names(names: Sequence[str]) -> dict[str, Any]:
    """The names as a model's configuration holds them."""
    both = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    return both if names else {}


def problem_of(config: PreTrainedConfig) -> str:
    """The ``problem_type`` of a sequence classifier; where its configuration has none, what transformers' pipeline
    takes it for: one label of several, or a score where there is one output."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


class SequencePredictor(Predictor):
    """One vector of outputs for each example, from its [CLS]."""

    def logits(self, batch: PackedBatch) -> Tensor:
        """(B, K), float32 whatever the precision of the model."""
        return sequence_logits(self.model, batch.input).float()


@contextmanager
def _reading(files: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except (ValueError, IndexError, KeyError) as error:  # such as half a line, or runs with other numbers of labels
        listing = ", ".join(map(str, files))
        raise InputError(
            f"{listing}: not predictions of one split that can be averaged ({error}); delete the folder of the run "
            "whose file is damaged, and run it again"
        ) from None


def mean_outputs(files: Sequence[Path]) -> np.ndarray:
    """The mean (N, K) of the outputs that several models wrote for one split; ``InputError`` if one is damaged."""
    with _reading(files):
        found = [np.array([row[3:] for row in read_tsv(file)[1:]], dtype=np.float32) for file in files]
        if not all(outputs.ndim == 2 and outputs.size for outputs in found):
            raise ValueError("no numbers")
        return np.mean(found, axis=0)


class VectorType(TaskType):
    """Outputs are (N, K), and labels numbers: they can be written as a table, and averaged over models."""

    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Those of :mod:`finetune.metrics`."""
        return scores(self.section.metrics, predictions, labels)

    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """All alike, or no numbers."""
        return degenerate(self.section.type, predictions, labels, self.section.labels)

    @abstractmethod
    def best(self, outputs: np.ndarray) -> np.ndarray:
        """What is predicted, from (N, K) outputs: as the labels of the task are."""

    @abstractmethod
    def parse_prediction(self, text: str) -> Any:
        """What ``format_prediction`` wrote, as a number or a row of them."""

    def columns(self, predicted: Predicted) -> tuple[Sequence[str], np.ndarray]:
        """The outputs: probabilities of the labels, or the score."""
        return [f"p({name})" for name in self.section.labels] or ["score"], predicted.outputs

    def ensemble(self, files: Sequence[Path]) -> dict[str, float]:
        """The metrics of the mean of the outputs."""
        outputs = mean_outputs(files)
        with _reading(files):
            return self.scores(
                self.best(outputs), np.array([self.parse_prediction(row[2]) for row in read_tsv(files[0])[1:]])
            )


class SequenceType(VectorType):
    """A text or a pair of texts with a target."""

    model_class = AutoModelForSequenceClassification
    pipeline = "text-classification"
    problem: ClassVar[str]
    """What transformers calls the kind."""

    def settings(self) -> dict[str, Any]:
        """Names of the labels, and the kind of problem."""
        names = self.section.labels
        return {"num_labels": max(1, len(names)), "problem_type": self.problem} | label_names(names)

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Where the labels are the same, and as many of them hold at once."""
        return super().labels_fit(config) and problem_of(config) == self.problem

    def examples(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        training: FinetuneTrainSection | None = None,
    ) -> Examples:
        """One sequence each; where it is too long, the texts are cut as BERT's ``run_classifier.py`` does."""
        both_orders = training is not None and training.both_orders
        texts, labels = split.texts, split.labels
        return TextExamples(texts, labels, tokenizer, max_length=max_length, seed=seed, both_orders=both_orders)

    def decide(self, outputs: np.ndarray, examples: Examples, index: np.ndarray) -> np.ndarray:
        """From the outputs alone."""
        return self.best(outputs)

    def baselines(self, task: Task, split: str) -> dict[str, dict[str, float]]:
        """Those of :mod:`finetune.baselines`."""
        return baselines(task, split)
