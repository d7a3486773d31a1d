"""An answer within a text for each question: cross-entropy of its first and its last token.

Both are found independently, as BERT does SQuAD, or the last one given the first, as ELECTRA and ALBERT do, in windows
on the text (:mod:`finetune.task_types.windows`).

Legend: N questions of a split, B windows and T tokens of a batch.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.data.tables import Table
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import encode, reads_token_types, span_logits
from bertillery.models.frame import template
from bertillery.models.heads import best_within, log_softmax_within
from bertillery.models.joint_spans import HEADS, JointSpans, SpanScores, Windows, flattened, joint_head
from bertillery.models.load import read_config
from bertillery.report.plot import plot_bars
from finetune.data.rows import objects
from finetune.data.sources import Source
from finetune.data.splits import Split
from finetune.examples import Examples
from finetune.predict import Predictor
from finetune.task import TaskSection
from finetune.task_types import answers
from finetune.task_types.answers import Prediction
from finetune.task_types.base import Predicted, Reading, TaskType
from finetune.task_types.windows import QuestionExamples, SpansSection

logger = logging.getLogger(__name__)
_QUESTIONS = ("what", "who", "when", "where", "which", "how", "why")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")


class Config(TaskSection):
    """Questions on contexts, with the answers in the contexts."""

    available_metrics = ("f1", "exact_match", "best_f1", "best_exact_match")
    """Those named ``best`` are at the best threshold for having no answer."""
    num_texts = (2,)
    texts_are = ", of the questions and of their contexts: [question, context]"
    pairs_of_texts = False
    unlabelled = "an answer"

    spans: SpansSection | None = None
    """How answers are looked for; the defaults where it is left out."""

    def problems(self) -> list[str]:
        """Thresholds and ALBERT's head are for unanswerable questions."""
        found, spans = super().problems(), self.spans or SpansSection()
        best = [name for name in self.metrics if name.startswith("best_")]
        if best and not spans.unanswerable:
            found.append(f"metrics {', '.join(best)}: there is a threshold to choose with spans.unanswerable only")
        if spans.head == "albert" and not spans.unanswerable:
            found.append(
                "spans.head: albert tells unanswerable questions from others, and there are none here; give "
                "independent, or spans.unanswerable=true"
            )
        return found

    @classmethod
    def recipe_kinds(cls, values: Mapping[str, Any]) -> list[str]:
        """``spans``, and over it ``unanswerable`` where some questions have no answer."""
        given = values.get("spans")
        return ["spans"] + ["unanswerable"] * bool(isinstance(given, dict) and given.get("unanswerable"))

    @classmethod
    def fit_recipe(cls, recipe: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Where the task names another head than the recipe, the recipe's settings of spans, which go with its head,
        are left out."""
        given, head = values.get("spans"), recipe.get("task", {}).get("spans", {}).get("head")
        other = isinstance(given, dict) and given.get("head", head) != head
        return {section: settings for section, settings in recipe.items() if not (other and section == "task")}

    def check_model(self, start: str) -> None:
        """``ConfigError`` where the joint head is not one for the model."""
        head = (self.spans or SpansSection()).head
        if head == "independent":
            return
        found = read_config(start)
        if found.model_type != head or not reads_token_types(found):
            blind = " without token types, by which that head knows the context" * (found.model_type == head)
            raise ConfigError(
                f"task.spans.head: given {head!r}, the head of {head} models; {start} is a model of type "
                f"{found.model_type}{blind}; give independent"
            )


class Objective(Predictor):
    """Targets are ``spans`` (B, 2), first and last token of the answer in each window; both 0, [CLS], without one."""

    def logits(self, batch: PackedBatch) -> Tensor:
        """(T, 2): of being the first token of the answer, and the last."""
        return span_logits(self.model, batch.input)

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``cross_entropy`` in nats, the mean of the first and the last token's, and the share of windows with both
        right."""
        rows = batch.input.first_rows[:, None] + batch.targets["spans"]
        owner, number = _window(batch), batch.input.num_sequences
        chosen = log_softmax_within(logits, owner, number).gather(0, rows)
        best = [best_within(column.detach(), owner, number) for column in logits.unbind(1)]
        return {
            "cross_entropy": Term(-chosen.sum() / 2, "windows"),
            "accuracy": Term((torch.stack(best, 1) == rows).all(1).sum(), "windows", weight=0.0),
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
    """Targets are those of :class:`Objective`, and ``unanswerable`` (B,) for the classifier for no answer."""

    model: JointSpans

    def logits(self, batch: PackedBatch) -> SpanScores:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The head's scores of the windows, with a beam unless in training."""
        hidden, ends = encode(self.model, batch.input), batch.input.offsets
        windows = Windows(hidden, cast(Tensor, batch.input.token_type_ids), ends, _window(batch), batch.input.positions)
        spans = batch.targets.get("spans")
        first = None if spans is None else batch.input.first_rows + spans[:, 0]
        return self.model.scores(windows, first, beam=not self.training)

    def terms(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, logits: SpanScores, batch: PackedBatch
    ) -> dict[str, Term]:
        """``cross_entropy`` in nats, the mean of the first token's and of the last one's given the right first;
        ``answerability``, with half the weight; ``accuracy``, the share of windows with both tokens right, and that of
        the classifier for no answer."""
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
            "accuracy": Term(right.sum(), "windows", weight=0.0),
            "answerability_accuracy": Term(((null > 0) == unanswerable).sum(), "windows", weight=0.0),
        }

    def outputs(self, logits: SpanScores, batch: PackedBatch) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A row for each window."""
        return flattened(logits)


def _window(batch: PackedBatch) -> Tensor:
    """The window (T,) of each token."""
    numbers = torch.arange(batch.input.num_sequences, device=batch.input.offsets.device)
    return numbers.repeat_interleave(batch.input.offsets.diff(), output_size=batch.input.num_tokens)


class Type(TaskType):
    """Texts are question and context, labels the answers ``(Answer, ...)`` of each question, each of which is in the
    context at its place, predictions the best of those found (N,)."""

    model_class = AutoModelForQuestionAnswering
    pipeline = "question-answering"
    label_needed = False
    unique_ids = True

    def __init__(self, section: Config) -> None:
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

    def label_reader(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From ``[{"text": ..., "answer_start": ...}, ...]``, or a dictionary of lists as on the Hub.

        A question without an answer has an empty list, or empty lists. A start is an integer, also where a file has
        it as text (``"21"``) or as a float without a fraction (``21.0``).
        """
        return lambda cell: answers.read_answers(column, cell)

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """Every answer is at its place in the context."""
        if label is not None and not label and not self.spans.unanswerable:
            raise ValueError("a question without an answer; with task.spans.unanswerable=true there may be some")
        for answer in label or ():
            found = texts[1][answer.start : answer.start + len(answer.text)]
            if found != answer.text or not found.strip():
                raise ValueError(f"the answer {answer.text!r} is not in the context at {answer.start}, but {found!r}")
        return texts, label

    def label_array(self, labels: list[Any]) -> np.ndarray:
        """(N,) tuples."""
        return objects(labels)

    def describe_labels(self, labels: np.ndarray) -> str:
        """Numbers of answers, and of questions without one."""
        numbers = np.array([len(given) for given in labels])
        none = f", {int((numbers == 0).sum()):,} questions without one" if (numbers == 0).any() else ""
        return f"{int(numbers.sum()):,} answers{none}"

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

    def _examples(self, split: Split, tokenizer: PreTrainedTokenizerBase, how: Reading) -> Examples:
        """Windows to be trained on, or questions with all their windows.

        Epochs and the batch size count windows; the original counts questions where it computes the number of steps,
        which on SQuAD is 1 % less.
        """
        if self.head and template(tokenizer, 2).text_types != (0, 1):
            raise ConfigError(
                f"task.spans.head: {self.spans.head} knows the context by its token type, 1, which this model's "
                "tokenizer does not give; give task.spans.head=independent"
            )
        examples = QuestionExamples(
            split, tokenizer, self.spans, max_length=how.max_length, seed=how.seed, training=how.training
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

    def scores(
        self, predictions: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None = None
    ) -> dict[str, float]:
        """Those of :mod:`finetune.task_types.answers`."""
        return answers.scores(self.section.metrics, predictions, labels, unanswerable=self.spans.unanswerable)

    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """No answer to any question, or the same to all."""
        given = {self.format_prediction(each) for each in predictions}
        if len(predictions) < 2 or len(given) > 1:
            return None
        return f"answers every question with {given.pop()!r}" if given != {""} else "answers no question"

    def guesses(self, train: Split, held_out: Split) -> dict[str, np.ndarray]:
        """``majority``, no answer, and ``bag of words``: the sentence of the context that is most like the question."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        sentences = {context: _SENTENCE.split(context) for context in held_out.texts[1]}
        ends = dict(zip(sentences, np.cumsum([*map(len, sentences.values())]), strict=True))
        vectorizer = TfidfVectorizer(sublinear_tf=True)
        rows: Any = vectorizer.fit_transform(chain.from_iterable(sentences.values()))
        asked: Any = vectorizer.transform(held_out.texts[0])
        found = []
        for question, context in enumerate(held_out.texts[1]):
            parts, end = sentences[context], ends[context]
            alike = (rows[end - len(parts) : end] @ asked[question].T).toarray()[:, 0]
            found.append(Prediction(parts[int(alike.argmax())].strip(), -float(alike.max())))
        return {"majority": objects([Prediction("", 0.0)] * len(found)), "bag of words": objects(found)}

    def choose(self, predicted: Predicted) -> dict[str, float]:
        """The threshold of the best F1 (``best_f1_thresh`` of the official script)."""
        if not self.spans.unanswerable:
            return {}
        given, labels = predicted.predictions, predicted.labels
        answered = answers.table(given, labels, unanswerable=True)
        _, self.threshold = answers.best_threshold(answered[:, 1], given, labels)
        return {"null_threshold": self.threshold}

    def restore(self, chosen: Mapping[str, float]) -> None:
        """The threshold."""
        self.threshold = chosen.get("null_threshold", self.threshold)

    def plain(self, prediction: Any) -> str:
        """The answer as it stands in the context; nothing where there is none."""
        return prediction.text if self._answers(prediction) else ""

    def format_prediction(self, prediction: Any) -> str:
        """The answer on one line; nothing where there is none."""
        return " ".join(self.plain(prediction).split())

    def _answers(self, prediction: Prediction) -> bool:
        return prediction.null <= self.threshold

    def format_label(self, label: Any) -> str:
        """The different answers, with bars between."""
        return " | ".join(dict.fromkeys(" ".join(answer.text.split()) for answer in label))

    def columns(self, predicted: Predicted) -> tuple[Sequence[str], np.ndarray]:
        """``probability`` of what is predicted, an answer or none; and ``null``, by how much having none scores
        higher, where there may be none."""
        given = predicted.predictions
        shares = [each.probability if self._answers(each) else each.null_probability for each in given]
        if not self.spans.unanswerable:
            return ["probability"], np.array(shares)[:, None]
        return ["probability", "null"], np.stack([shares, [each.null for each in given]], 1)

    def fields(self, predicted: Predicted) -> dict[str, Sequence[Any]]:
        """Also ``start`` and ``end``: the answer is ``context[start:end]``, in characters; both 0 for none."""
        found = super().fields(predicted)
        starts = [each.start if self._answers(each) else 0 for each in predicted.predictions]
        ends = [start + len(answer) for start, answer in zip(starts, found["prediction"], strict=True)]
        return found | {"start": starts, "end": ends}

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
        contents = {f"{predicted.split.name}.json": dict(zip(names, map(self.plain, given), strict=True))}
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
