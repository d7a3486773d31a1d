"""One of several texts for each example: cross-entropy over a score for each, as BERT does SWAG.

Legend: N questions of a split, B of a batch, S sequences (one a choice), C choices of a question at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForMultipleChoice, PreTrainedConfig, PreTrainedTokenizerBase

from bertillery.data.listed import tokenize
from bertillery.data.tables import Table
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import choice_logits
from bertillery.models.frame import template
from bertillery.models.heads import best_within, log_softmax_within
from finetune.data.rows import as_text, class_id_reader
from finetune.data.sources import Source
from finetune.data.splits import Split
from finetune.examples import Examples, Sequences, truncated
from finetune.predict import Predictor
from finetune.task import TaskSection, Words
from finetune.task_types import classification
from finetune.task_types.base import Predicted, Reading


class Config(TaskSection):
    """A text and its choices."""

    available_metrics = ("accuracy",)
    pairs_of_texts = False

    choices: Words = Field(default=[])
    """Columns of the choices, of which a row may leave some empty, or one column with a list of them."""

    def problems(self) -> list[str]:
        """There are choices, and as many names."""
        found = super().problems()
        if not self.choices:
            found.append("choices names the columns of the choices, and there are none; give task.choices")
        if len(self.choices) > 1 and len(self.labels) not in (0, len(self.choices)):
            found.append(f"there are {len(self.choices)} choices and {len(self.labels)} labels, which name them")
        return found


class Objective(Predictor):
    """Targets are ``choices`` (B,), how many a question has, and ``labels`` (B,), the right one of them."""

    def logits(self, batch: PackedBatch) -> Tensor:
        """(S,)."""
        return choice_logits(self.model, batch.input, question=_owner(batch))

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``cross_entropy`` in nats, and the accuracy."""
        choices, owner = batch.targets["choices"], _owner(batch)
        right = choices.cumsum(0) - choices + batch.targets["labels"]
        chosen = log_softmax_within(logits, owner, len(choices))
        best = best_within(logits.detach(), owner, len(choices))
        return {
            "cross_entropy": Term(-chosen[right].sum(), "examples"),
            "accuracy": Term((best == right).sum(), "examples", weight=0.0),
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
    """A sequence for each choice that is not empty: the text, and the choice."""

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
        """Labels as places among the choices that are not empty."""
        targets = {"choices": self.per_example[index]}
        if self.labels is not None:
            before = np.arange(self.there.shape[1]) < self.labels[index][:, None]
            targets["labels"] = (self.there[index] & before).sum(1)
        return targets, {"examples": len(index)}

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One for each choice."""
        return self.per_example[index]


def present(split: Split) -> np.ndarray:
    """Which choices are not empty (N, C), bool."""
    number = max(map(len, split.texts[1]), default=0)
    there = np.zeros((split.num_examples, number), bool)
    for row, choices in zip(there, split.texts[1], strict=True):
        row[: len(choices)] = [bool(choice) for choice in choices]
    return there


def _spread(outputs: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Outputs (S, 1), end to end, as a table (N, C) with 0 where there is no choice."""
    table = np.zeros(there.shape, np.float32)
    table[there] = outputs[:, 0]
    return table


class Type(classification.Type):
    """Labels and predictions are numbers of choices (N,).

    The texts of an example are what is to be continued, and its choices ``[text, ...]``, empty where there is none. In
    a single column of ``task.choices`` the choices are a list, or, as on the Hub, ``{"text": [...], "label": [...]}``;
    then the label is one of those beside them.
    """

    model_class = AutoModelForMultipleChoice
    pipeline = "multiple-choice"
    objective_class = Objective
    section: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def text_columns(self) -> dict[str, str]:
        """Columns of the texts and of the choices."""
        listed = ", ".join(self.section.choices)
        return super().text_columns() | dict.fromkeys(self.section.choices, f"task.choices=[{listed}]")

    def text_names(self) -> list[str]:
        """The first text, and its choices."""
        return [self.section.text[0], "choices"]

    def read_text(self, cell: Any) -> Any:
        """A text, or choices in one cell."""
        return cell if isinstance(cell, list | dict) else super().read_text(cell)

    def label_reader(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From the name of a choice to its number; where a row names its own, ``example`` does that."""
        cells = table.columns[source.columns.get(self.section.choices[0], self.section.choices[0])]
        if any(isinstance(cell, dict) for cell in cells):
            return lambda cell: cell if isinstance(cell, str) else str(cell)
        return class_id_reader(self.section, source, table, column)

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """The text and its choices, each behind what they begin with."""
        size = len(self.section.text)
        begins = [as_text(text) for text in texts[:size]]
        given, names = _choices(texts[size:])
        if len(given) > len(self.section.labels):
            raise ValueError(f"{len(given)} choices, and task.labels names {len(self.section.labels)}")
        if sum(bool(choice.strip()) for choice in given) < 2:
            raise ValueError(f"less than two choices: {given}")
        if isinstance(label, str):  # where some rows name their own choices
            called = self.section.labels if names is None else names
            if label not in called:
                raise ValueError(f"the label is {label!r}, and the choices are called {', '.join(called)}")
            label = called.index(label)
        if label is not None and (label >= len(given) or not given[label].strip()):
            raise ValueError(f"the label is that of choice {label + 1}, which is empty")
        begin = begins[1] + " " if size == 2 else ""
        return (begins[0], [begin + choice if choice.strip() else "" for choice in given]), label

    def settings(self) -> dict[str, Any]:
        """Nothing: the model does not know how many choices there are."""
        return {}

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Always: it is one score."""
        return True

    def _examples(self, split: Split, tokenizer: PreTrainedTokenizerBase, how: Reading) -> Examples:
        """As many sequences as there are choices for each question; a step's batch size counts questions."""
        return ChoiceExamples(split, tokenizer, max_length=how.max_length, seed=how.seed)

    def decide(self, outputs: np.ndarray, examples: Examples, index: np.ndarray) -> np.ndarray:
        """The most probable choice."""
        assert isinstance(examples, ChoiceExamples)
        return self.best(_spread(outputs, examples.there[index]))

    def guesses(self, train: Split, held_out: Split) -> dict[str, np.ndarray]:
        """``majority``, the most frequent place of the right choice, and ``bag of words``: the choice (N,) that a
        logistic regression on its words, and on how many of the text's it has, prefers."""
        from scipy import sparse
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        assert train.labels is not None
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        vectorizer.fit([*train.texts[0], *(choice for choices in train.texts[1] for choice in choices)])

        def features(split: Split) -> tuple[Any, np.ndarray]:
            sizes = np.array([len(choices) for choices in split.texts[1]])
            choices = vectorizer.transform([choice for choices in split.texts[1] for choice in choices])
            texts = vectorizer.transform(split.texts[0])[np.repeat(np.arange(len(sizes)), sizes)]
            alike = np.asarray(texts.multiply(choices).sum(1))
            return sparse.hstack([choices, sparse.csr_matrix(alike)], format="csr"), sizes

        known, sizes = features(train)
        right = np.zeros(known.shape[0], np.int64)
        right[np.cumsum(sizes) - sizes + train.labels] = 1
        unknown, sizes = features(held_out)
        preferred = LogisticRegression(max_iter=1000).fit(known, right).decision_function(unknown)
        empty = [not choice for choices in held_out.texts[1] for choice in choices]
        parts = np.split(np.where(empty, -np.inf, preferred), np.cumsum(sizes)[:-1])
        majority = np.full(held_out.num_examples, self.constant(train.labels))
        return {"majority": majority, "bag of words": np.array([part.argmax() for part in parts])}

    def class_report(self, predicted: Predicted) -> list[list[str]]:
        """None: the place of a choice says nothing of it."""
        return []

    def format_text(self, text: Any) -> str:
        """Choices with slashes between."""
        return super().format_text(text if isinstance(text, str) else " / ".join(filter(None, text)))

    def columns(self, predicted: Predicted) -> tuple[Sequence[str], np.ndarray]:
        """The probabilities of the choices, 0 of one that is not there."""
        found = _spread(predicted.outputs, present(predicted.split))
        table = np.zeros((len(found), len(self.section.labels)), np.float32)
        table[:, : found.shape[1]] = found
        return [f"p({name})" for name in self.section.labels], table


def _choices(cells: Sequence[Any]) -> tuple[list[str], list[str] | None]:
    """The choices in a row's cells, and their names where the row gives them; ``ValueError`` for anything else."""
    given, names = (cells[0], None) if isinstance(cells[0], list) else (list(cells), None)
    if isinstance(cells[0], dict):
        given, names = cells[0].get("text"), cells[0].get("label")
        if not (isinstance(given, list) and isinstance(names, list) and len(given) == len(names)):
            raise ValueError(f"choices are two lists of one length, text and label, not {cells[0]!r:.200}")
        names = [str(name) for name in names]
        if len({*names}) < len(names):
            raise ValueError(f"two choices of one name: {', '.join(names)}")
    if len(cells) > 1 and any(isinstance(cell, list | dict) for cell in cells):
        raise ValueError(f"choices are a column each, or all of them in one: {cells!r:.200}")
    try:
        return [as_text(choice) for choice in given], names
    except ValueError as error:
        raise ValueError(f"choices are texts, not {given!r:.200} ({error})") from None
