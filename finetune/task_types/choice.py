"""One of several texts for each example: cross-entropy over a score for each, as BERT does SWAG.

Legend: N questions of a split, B of a batch, S sequences (one a choice), C choices of a question at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForMultipleChoice, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import choice_logits
from bertillery.models.frame import template
from bertillery.models.heads import best_within, log_softmax_within
from finetune.baselines import choice_baselines
from finetune.config import FinetuneTrainSection
from finetune.examples import Examples, Sequences, tokenize, truncated
from finetune.predictor import Predictor
from finetune.report import plot_confusion
from finetune.splits import Split, Task
from finetune.task_types.base import Predicted
from finetune.task_types.sequences import VectorType


class Objective(Predictor):
    """Targets are ``choices`` (B,), how many a question has, and ``labels`` (B,), which of them is right."""

    def logits(self, batch: PackedBatch) -> Tensor:
        """(S,)."""
        return choice_logits(self.model, batch.input)

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``cross_entropy`` in nats, and the share of right answers."""
        choices, owner = batch.targets["choices"], _owner(batch)
        right = choices.cumsum(0) - choices + batch.targets["labels"]
        chosen = log_softmax_within(logits, owner, len(choices))
        best = best_within(logits.detach(), owner, len(choices))
        return {
            "cross_entropy": Term(-chosen[right].sum(), "examples"),
            "right": Term((best == right).sum(), "examples", weight=0.0),
        }

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Over the choices of a question."""
        return log_softmax_within(logits, _owner(batch), len(batch.targets["choices"]))

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Probability of each choice (S, 1) among those of its question."""
        return self.log_probabilities(logits, batch).exp()[:, None]


def _owner(batch: PackedBatch) -> Tensor:
    """The question (S,) of each sequence."""
    choices = batch.targets["choices"]
    numbers = torch.arange(len(choices), device=choices.device)
    return numbers.repeat_interleave(choices, output_size=batch.input.num_sequences)


class ChoiceExamples(Examples):
    """A sequence for each choice that is there: the text, and the choice."""

    def __init__(self, split: Split, tokenizer: PreTrainedTokenizerBase, *, max_length: int, seed: int) -> None:
        """Too long pairs are cut as those of other tasks. Raises ``InputError`` where there is no room for text."""
        around = template(tokenizer, 2)
        self.there = present(split)
        per_example = self.there.sum(1)
        endings = [choice for choices in split.texts[1] for choice in choices if choice]
        tokens = tokenize([*split.texts[0], *endings], tokenizer)
        question = np.repeat(np.arange(split.num_examples), per_example)
        which = np.stack([question, split.num_examples + np.arange(len(endings))])
        lengths = tokens.lengths[which]
        sizes = truncated(lengths, around.room(max_length))
        sequences = Sequences(around, tokens.ids, tokens.starts[which], sizes)
        cut = len(np.unique(question[(sizes < lengths).any(0)]))
        super().__init__(sequences, per_example, split.labels, cut=cut, seed=seed)

    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Labels as places among the choices that are there."""
        targets = {"choices": self.per_example[index]}
        if self.labels is not None:
            before = np.arange(self.there.shape[1]) < self.labels[index][:, None]
            targets["labels"] = (self.there[index] & before).sum(1)
        return targets, {"examples": len(index)}

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One for each choice."""
        return self.per_example[index]


def present(split: Split) -> np.ndarray:
    """Which choices there are (N, C), bool."""
    number = max(map(len, split.texts[1]), default=0)
    there = np.zeros((split.num_examples, number), bool)
    for row, choices in zip(there, split.texts[1], strict=True):
        row[: len(choices)] = [bool(choice) for choice in choices]
    return there


def spread(outputs: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Outputs (S, 1), end to end, as a table (N, C) with 0 where there is no choice."""
    table = np.zeros(there.shape, np.float32)
    table[there] = outputs[:, 0]
    return table


class Type(VectorType):
    """Labels and predictions are numbers of choices (N,)."""

    model_class = AutoModelForMultipleChoice
    pipeline = "multiple-choice"

    def settings(self) -> dict[str, Any]:
        """Nothing: the model does not know how many choices there are."""
        return {}

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Always: it is one score."""
        return True

    def objective(self, model: PreTrainedModel) -> Predictor:
        """With cross-entropy over the choices of a question."""
        return Objective(model)

    def examples(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        training: FinetuneTrainSection | None = None,
    ) -> Examples:
        """As many sequences as there are choices for each question; a step's batch size counts questions."""
        return ChoiceExamples(split, tokenizer, max_length=max_length, seed=seed)

    def decide(self, outputs: np.ndarray, examples: Examples, index: np.ndarray) -> np.ndarray:
        """The most probable choice."""
        assert isinstance(examples, ChoiceExamples)
        return self.best(spread(outputs, examples.there[index]))

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """The most probable choice, int64 (N,)."""
        return outputs.argmax(-1)

    def baselines(self, task: Task, split: str) -> dict[str, dict[str, float]]:
        """The most frequent place of the right choice, and a regression on the words of text and choice."""
        found = choice_baselines(task.split("train"), task.split(split))
        labels = task.split(split).labels
        assert labels is not None
        return {name: self.scores(guessed, labels) for name, guessed in found.items()}

    def format_prediction(self, prediction: Any) -> str:
        """The choice's name."""
        return self.section.labels[int(prediction)]

    def parse_prediction(self, text: str) -> int:
        """The choice's number."""
        return self.section.labels.index(text)

    def columns(self, predicted: Predicted) -> tuple[Sequence[str], np.ndarray]:
        """The probabilities of the choices."""
        table = spread(predicted.outputs, present(predicted.split))
        return [f"p({name})" for name in self.section.labels[: table.shape[1]]], table

    def distances(self, predicted: Predicted) -> np.ndarray:
        """1 less the probability of the right choice."""
        table = spread(predicted.outputs, present(predicted.split))
        return 1 - table[np.arange(len(table)), predicted.labels]

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """Which place was taken for which."""
        picture, title = folder / "confusion.png", f"{self.section.name}, {predicted.split.name}"
        plot_confusion(predicted.predictions, predicted.labels, self.section.labels, picture, title)
        return [picture]
