"""An answer within a text for each question: cross-entropy of its first and its last token.

Either is found by itself, as BERT does SQuAD, or the last one given the first, as ELECTRA and ALBERT do.

Legend: N questions of a split, B windows and T tokens of a batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import encode, span_logits
from bertillery.models.frame import template
from bertillery.models.heads import best_within, log_softmax_within
from bertillery.models.joint_spans import HEADS, JointSpans, SpanScores, Windows, flattened, joint_head
from finetune.baselines import span_baselines
from finetune.config import FinetuneTrainSection
from finetune.examples import Examples
from finetune.predictor import Predictor
from finetune.report import plot_bars
from finetune.rows import objects
from finetune.splits import Split, Task
from finetune.task import SpansSection, TaskSection
from finetune.task_types import answers
from finetune.task_types.answers import Prediction
from finetune.task_types.base import Predicted, TaskType
from finetune.task_types.questions import BeamExamples, QuestionExamples

logger = logging.getLogger(__name__)
_QUESTIONS = ("what", "who", "when", "where", "which", "how", "why")


class Objective(Predictor):
    """Targets are ``spans`` (B, 2), first and last token of the answer in each window; both 0, [CLS], without one."""

    def logits(self, batch: PackedBatch) -> Tensor:
        """(T, 2): of being the first token of the answer, and the last."""
        return span_logits(self.model, batch.input)

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``cross_entropy`` in nats, the mean of the first and the last token's, and windows with both right."""
        rows = batch.input.first_rows[:, None] + batch.targets["spans"]
        owner, number = _window(batch), batch.input.num_sequences
        chosen = log_softmax_within(logits, owner, number).gather(0, rows)
        best = [best_within(column.detach(), owner, number) for column in logits.unbind(1)]
        return {
            "cross_entropy": Term(-chosen.sum() / 2, "windows"),
            "right": Term((torch.stack(best, 1) == rows).all(1).sum(), "windows", weight=0.0),
        }

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Over the tokens of a window, for first and last."""
        return log_softmax_within(logits, _window(batch), batch.input.num_sequences)

    def distributions(self, logits: Tensor) -> int:
        """Two: of the first token, and of the last."""
        return logits.shape[1]

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """The logits."""
        return logits


class JointObjective(Predictor):
    """Targets are as those of :class:`Objective`, and ``unanswerable`` (B,), what a classifier has to tell."""

    model: JointSpans

    def logits(self, batch: PackedBatch) -> SpanScores:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the head says of the windows, with a beam unless in training."""
        hidden, ends = encode(self.model, batch.input), batch.input.offsets
        windows = Windows(hidden, cast(Tensor, batch.input.token_type_ids), ends, _window(batch), batch.input.positions)
        spans = batch.targets.get("spans")
        first = None if spans is None else batch.input.first_rows + spans[:, 0]
        return self.model.scores(windows, first, beam=not self.training)

    def terms(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, logits: SpanScores, batch: PackedBatch
    ) -> dict[str, Term]:
        """``cross_entropy`` in nats, the mean of the first token's and of the last one's given the right first; half of
        ``answerability``'s; windows with both tokens right, and those told right from those without an answer."""
        starts, ends, null, _ = logits
        assert ends is not None
        first, last = (batch.input.first_rows + each for each in batch.targets["spans"].unbind(1))
        owner, number, unanswerable = _window(batch), batch.input.num_sequences, batch.targets["unanswerable"]
        right = best_within(starts.detach(), owner, number) == first
        right &= best_within(ends.detach(), owner, number) == last
        told = F.binary_cross_entropy_with_logits(null, unanswerable.float(), reduction="sum")
        return {
            "cross_entropy": Term(-(starts[first] + ends[last]).sum() / 2, "windows"),
            "answerability": Term(told, "windows", weight=0.5),
            "right": Term(right.sum(), "windows", weight=0.0),
            "answerability_right": Term(((null > 0) == unanswerable).sum(), "windows", weight=0.0),
        }

    def outputs(self, logits: SpanScores, batch: PackedBatch) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A row for each window."""
        return flattened(logits)


def _window(batch: PackedBatch) -> Tensor:
    """The window (T,) of each token."""
    numbers = torch.arange(batch.input.num_sequences, device=batch.input.offsets.device)
    return numbers.repeat_interleave(batch.input.offsets.diff(), output_size=batch.input.num_tokens)


class Type(TaskType):
    """Labels are the answers ``(Answer, ...)`` of each question, predictions the best of those found (N,)."""

    model_class = AutoModelForQuestionAnswering
    pipeline = "question-answering"

    def __init__(self, section: TaskSection) -> None:
        super().__init__(section)
        self.spans = section.spans or SpansSection()
        self.head = HEADS.get(self.spans.head)
        """The class of models with the joint head, if it is one."""
        if self.head:
            self.usage = (
                "Its head is none of transformers' own: `import bertillery` lets "
                "`AutoModelForQuestionAnswering.from_pretrained` open it."
            )
        self.threshold = 0.0 if self.spans.unanswerable else np.inf
        """A question whose ``null`` is higher has no answer."""

    def settings(self) -> dict[str, Any]:
        """Two outputs, of the first token and of the last; or the class of the model that has the joint head."""
        return {"num_labels": 2} | ({"architectures": [self.head.__name__]} if self.head else {})

    def head_fits(self, config: PreTrainedConfig) -> bool:
        """Whether it is the same kind of head."""
        return joint_head(config) == self.spans.head if self.head else super().head_fits(config)

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Always: what finds answers in SQuAD 1.1 is a start for 2.0."""
        return True

    def objective(self, model: PreTrainedModel) -> Predictor:
        """With cross-entropy of first and last token."""
        if not isinstance(model, JointSpans):
            return Objective(model)
        model.config.beam_size = self.spans.n_best
        return JointObjective(model)

    def examples(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        training: FinetuneTrainSection | None = None,
    ) -> Examples:
        """Windows to be trained on, or questions with all their windows.

        Epochs and the batch size count windows; the original counts questions where it computes the number of steps,
        which on SQuAD is 1 % less.
        """
        if self.head and template(tokenizer, 2).text_types != (0, 1):
            raise ConfigError(
                f"task.spans.head: {self.spans.head} knows the context by its token type, 1, which this model's "
                "tokenizer does not give; give task.spans.head=independent"
            )
        examples = (BeamExamples if self.head else QuestionExamples)(
            split, tokenizer, self.spans, max_length=max_length, seed=seed, training=training is not None
        )
        if examples.unplaced:
            logger.warning(
                "%s %s: %d answers hold nothing that the tokenizer keeps; they count as none",
                self.section.name, split.name, examples.unplaced,
            )  # fmt: skip
        return examples

    def decide(self, outputs: np.ndarray, examples: Examples, index: np.ndarray) -> np.ndarray:
        """The best span of each question, whether or not having no answer scores higher."""
        assert isinstance(examples, QuestionExamples)
        parts = np.split(outputs, np.cumsum(examples.num_outputs(index))[:-1])
        return objects([examples.predict(number, part) for number, part in zip(index, parts, strict=True)])

    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Those of :mod:`finetune.task_types.answers`."""
        return answers.scores(self.section.metrics, predictions, labels, unanswerable=self.spans.unanswerable)

    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """No answer to any question, or the same to all."""
        given = {self.format_prediction(each) for each in predictions}
        if len(predictions) < 2 or len(given) > 1:
            return None
        return f"answers every question with {given.pop()!r}" if given != {""} else "answers no question"

    def baselines(self, task: Task, split: str) -> dict[str, dict[str, float]]:
        """No answers at all, and the sentence of the context that is most like the question."""
        labels = task.split(split).labels
        assert labels is not None
        found = span_baselines(task.split(split))
        return {name: self.scores(guessed, labels) for name, guessed in found.items()}

    def choose(self, predicted: Predicted) -> dict[str, float]:
        """The threshold of the best F1 (``best_f1_thresh`` of the official script)."""
        if not self.spans.unanswerable:
            return {}
        given, labels = predicted.predictions, predicted.labels
        answered = answers.table(given, labels, unanswerable=True)
        _, self.threshold = answers.best_threshold(answered[:, 1], given, labels)
        return {"null_threshold": self.threshold}

    def format_prediction(self, prediction: Any) -> str:
        """The answer on one line; nothing where there is none."""
        return " ".join(self._text(prediction).split())

    def _text(self, prediction: Prediction) -> str:
        return prediction.text if prediction.null <= self.threshold else ""

    def format_label(self, label: Any) -> str:
        """The different answers, with bars between."""
        return " | ".join(dict.fromkeys(" ".join(answer.text.split()) for answer in label))

    def columns(self, predicted: Predicted) -> tuple[Sequence[str], np.ndarray]:
        """``null``: by how much having no answer scores higher."""
        if not self.spans.unanswerable:
            return super().columns(predicted)
        return ["null"], np.array([[each.null] for each in predicted.predictions])

    def _table(self, predicted: Predicted) -> np.ndarray:
        """Exact match and F1 (N, 2) at the threshold."""
        given, labels = predicted.predictions, predicted.labels
        answered = answers.table(given, labels, unanswerable=self.spans.unanswerable)
        return answers.at_threshold(answered, given, labels, self.threshold)

    def distances(self, predicted: Predicted) -> np.ndarray:
        """1 less F1."""
        return 1 - self._table(predicted)[:, 1]

    def write(self, folder: Path, predicted: Predicted) -> list[Path]:
        """``<split>.json``: the official form, an answer for each id.

        With unanswerable questions it is empty where ``null`` is above the threshold; all of these scores are in
        ``<split>.null.json``, in the form of the official script's ``--na-prob-file``.
        """
        names, given = list(map(str, predicted.split.index)), predicted.predictions
        contents = {f"{predicted.split.name}.json": dict(zip(names, map(self._text, given), strict=True))}
        if self.spans.unanswerable:
            nulls = (each.null for each in given)
            contents[f"{predicted.split.name}.null.json"] = dict(zip(names, nulls, strict=True))
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")
        return [folder / name for name in contents]

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """Exact match and F1 by the first question word."""
        asked = [next((w for w in q.lower().split() if w in _QUESTIONS), "other") for q in predicted.split.texts[0]]
        table, of_kind = self._table(predicted), np.array(asked)
        there = [name for name in (*_QUESTIONS, "other") if name in asked]
        groups = [f"{name} ({asked.count(name):,})" for name in there]
        bars = {
            name: [float(table[of_kind == kind, column].mean()) for kind in there]
            for column, name in enumerate(("exact_match", "f1"))
        }
        picture = folder / "questions.png"
        plot_bars(groups, bars, picture, f"{self.section.name}, {predicted.split.name}")
        return [picture]
