"""What the task types have in common whose outputs are one vector for each example.

Legend: N examples of a split, K outputs of an example, L labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.models.heads import problem_of
from bertillery.report.table import read_tsv
from finetune.baselines import bag_of_words
from finetune.data.splits import Split
from finetune.examples import Examples, TextExamples
from finetune.metrics import all_alike, diverged, scores
from finetune.task_types.base import Predicted, Reading, TaskType, label_names


class VectorType(TaskType):
    """One vector of outputs (K,) for each example, and numbers for labels: by default for a text or a pair of texts.

    Predictions can be written as a table, and outputs averaged over models.
    """

    model_class = AutoModelForSequenceClassification
    reads_causal = True
    pipeline = "text-classification"
    problem: ClassVar[str]
    """The ``problem_type`` of transformers."""

    @abstractmethod
    def best(self, outputs: np.ndarray) -> np.ndarray:
        """Predictions from outputs (N, K), as the labels of the task are."""

    @abstractmethod
    def parse_prediction(self, text: str) -> Any:
        """The number, or row of numbers, that ``format_prediction`` wrote."""

    @abstractmethod
    def constant(self, labels: np.ndarray) -> Any:
        """The best prediction for every example that knows only the labels of the training split."""

    def told_alike(self, prediction: Any, labels: np.ndarray) -> str:
        """What a warning calls a prediction that every example got."""
        return self.format_prediction(prediction)

    def settings(self) -> dict[str, Any]:
        """Names of the labels, and the problem type."""
        names = self.section.labels
        return {"num_labels": max(1, len(names)), "problem_type": self.problem} | label_names(names)

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Where the labels are the same, and as many of them hold at once."""
        return super().labels_fit(config) and problem_of(config) == self.problem

    def _examples(self, split: Split, tokenizer: PreTrainedTokenizerBase, how: Reading) -> Examples:
        """One sequence each; where it is too long, the texts are cut as BERT's ``run_classifier.py`` does."""
        texts, both = split.texts, how.training and how.both_orders
        return TextExamples(
            texts,
            split.labels,
            tokenizer,
            max_length=how.max_length,
            seed=how.seed,
            both_orders=both,
            orders=self.orders,
        )

    def decide(self, outputs: np.ndarray, examples: Examples, index: np.ndarray) -> np.ndarray:
        """From the outputs alone."""
        return self.best(outputs)

    def scores(
        self, predictions: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None = None
    ) -> dict[str, float]:
        """Those of :mod:`finetune.metrics`."""
        return scores(self.section.metrics, predictions, labels, outputs)

    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """Predictions that are not numbers, or all alike."""
        if found := diverged(predictions):
            return found
        alike = all_alike(predictions, labels)
        return f"predicts {self.told_alike(predictions[0], labels)} for every example" if alike else None

    def guesses(self, train: Split, held_out: Split) -> dict[str, np.ndarray]:
        """``majority`` (of scores ``mean``), the same prediction for every example; ``bag of words``; and for pairs
        ``overlap`` (:mod:`finetune.baselines`)."""
        assert train.labels is not None
        constant = np.repeat(np.asarray(self.constant(train.labels))[None], held_out.num_examples, axis=0)
        found = {"mean" if self.section.is_score else "majority": constant}
        return found | bag_of_words(train, held_out, scores=self.section.is_score)

    def columns(self, predicted: Predicted) -> tuple[Sequence[str], np.ndarray]:
        """The outputs: probabilities of the labels, or the score."""
        return [f"p({name})" for name in self.section.labels] or ["score"], predicted.outputs

    def ensemble(self, files: Sequence[Path]) -> dict[str, float]:
        """The metrics of the mean of the outputs."""
        outputs = mean_outputs(files)
        with _reading(files):
            labels = np.array([self.parse_prediction(row[2]) for row in read_tsv(files[0])[1:]])
            return self.scores(self.best(outputs), labels, outputs)


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
