"""What a task type is: a class ``Config`` with its keys of the section ``task``, and a class ``Type`` with everything
else that differs between task types. Each type is one file in this folder.

Legend: N examples of a split, M rows of outputs of some examples, K outputs of a row, L labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.data.tables import Table
from bertillery.engine.batch import Entities
from bertillery.models.encoders import ANY, ONE_STREAM, family, labels_of
from bertillery.models.frame import with_transform_tokens
from bertillery.models.heads import head_in_words
from bertillery.models.load import check_vocabulary, load, load_tokenizer, read_config
from bertillery.run.inputs import Fingerprint
from finetune.data.rows import as_text, class_id_reader
from finetune.data.sources import Source
from finetune.data.splits import Split, Task
from finetune.examples import Examples
from finetune.predict import Predictor
from finetune.record import Record
from finetune.task import TaskSection

_ADD_ORDERS = """\
A pair was read in both orders, and the two states were added before the linear head, which has no bias. So add the
logits of both orders; those of one order are not what was trained:

```python
both = tokenizer([a, b], [b, a], padding=True, return_tensors="pt")
logits = model(**both).logits.sum(0)
```"""
"""What a card says of a model that adds the orders of a pair."""


@dataclass(frozen=True)
class Reading:
    """How a split becomes sequences: the arguments of :meth:`TaskType.examples`."""

    max_length: int
    seed: int
    training: bool
    both_orders: bool


@dataclass(frozen=True)
class Predicted:
    """A whole split with its predictions."""

    split: Split
    outputs: np.ndarray
    """(M, K) float32, in the order of the examples."""
    predictions: np.ndarray
    """(N,) or (N, L), as the labels of the split are."""
    number: np.ndarray | None = None
    """Rows of outputs of each example (N,), where it is known."""
    num_cut: int = 0
    """Examples that were longer than the model reads."""

    @property
    def labels(self) -> np.ndarray:
        """Labels of the split, which has some."""
        assert self.split.labels is not None
        return self.split.labels


class TaskType(ABC):
    """How rows become examples, how a model is trained on them, and how its outputs are scored and shown."""

    model_class: ClassVar[Any]
    """The stock class that is trained and exported."""
    pipeline: str | None
    """The Hub's name for such a model."""
    objective_class: ClassVar[Callable[[PreTrainedModel], Predictor]]
    """The objective to train with."""
    label_needed: ClassVar[bool] = True
    """Whether a row with an empty label is incomplete."""
    label_hint: ClassVar[str] = ""
    """Where labels may stand beside the column ``task.label``, for messages."""
    unique_ids: ClassVar[bool] = False
    """Whether predictions are written by id, so that two examples of a split cannot share one."""
    reads_causal: ClassVar[bool] = False
    """Whether a causal model can learn it, from the state behind the whole text."""
    classes: ClassVar[bool] = False
    """Whether labels and predictions are numbers of classes, of which one can be taken for another."""
    distilled: ClassVar[bool] = True
    """Whether a student can learn it from a teacher: from what a head on an encoder says."""
    spaced: ClassVar[bool] = False
    """Whether words are tokenized with a space before each."""
    reads_text_alone: bool = True
    """Whether no entities are read beside the tokens."""
    usage: str = ""
    """How a model card says to open the model, where that is not the stock way (Markdown)."""
    orders: int = 1
    """Sequences of an example: 2 where a pair is read in both orders (:meth:`add_orders`)."""
    class_weights: np.ndarray | None = None
    """Weights (L,) of the classes in the loss of a training (:meth:`weigh`)."""
    data_dir: Path = Path("data")
    """Where a type prepares what it needs beside the rows; the run's own, which the stage sets."""

    def __init__(self, section: Any) -> None:
        self.section: TaskSection = section

    def add_orders(self) -> None:
        """Read every pair in both orders, and add the states of the two below the head (Radford et al. 2018, section
        3.3, for similarity). A stock pipeline reads one order, so the card names none."""
        self.orders, self.pipeline, self.usage = 2, None, _ADD_ORDERS

    def inputs(self) -> dict[str, Fingerprint]:
        """Fingerprints of what the type reads beside the rows, known without preparing it."""
        return {}

    # From rows to examples.

    def text_columns(self) -> dict[str, str]:
        """Columns of the texts, and the setting that names each."""
        return dict.fromkeys(self.section.text, f"task.text=[{', '.join(self.section.text)}]")

    def text_names(self) -> list[str]:
        """Names of the texts of an example."""
        return self.section.text

    def read_text(self, cell: Any) -> Any:
        """A text as the split holds it; ``ValueError`` for what is no text."""
        return as_text(cell)

    def label_cells(self, source: Source, table: Table, column: str) -> list[Any] | None:
        """The cells of the labels, one for each row; None where the table has no such column."""
        return table.columns.get(column)

    def label_reader(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """A function from a label's cell to the label, which raises ``ValueError`` for what is no label."""
        return class_id_reader(self.section, source, table, column)

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """Texts and label (None without one) as the split holds them; ``ValueError`` where they do not match."""
        return texts, label

    def label_array(self, labels: list[Any]) -> np.ndarray:
        """The labels of a split as an array of N entries."""
        return np.array(labels, dtype=np.int64)

    def describe_labels(self, labels: np.ndarray) -> str:
        """A summary of the labels of a split."""
        return self.format_shares(np.bincount(labels, minlength=len(self.section.labels)) / len(labels))

    def format_shares(self, shares: np.ndarray) -> str:
        """Shares of the labels, in the order of their ids."""
        return ", ".join(f"{name} {share:.1%}" for name, share in zip(self.section.labels, shares, strict=True))

    def examples(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        training: bool = False,
        both_orders: bool = False,
    ) -> Examples:
        """The split as sequences of at most ``max_length`` tokens. To be predicted: an example for each of the split's,
        in its order. With ``training``, the examples to train on, with ``both_orders`` every pair in both orders."""
        return self._examples(split, tokenizer, Reading(max_length, seed, training, both_orders))

    @abstractmethod
    def _examples(self, split: Split, tokenizer: PreTrainedTokenizerBase, how: Reading) -> Examples:
        """See :meth:`examples`."""

    # The model.

    def fitted(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer with the tokens that the type adds: by default none."""
        return tokenizer

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Entries of the model's configuration that follow from the task."""

    def tokenizers(self) -> Mapping[str, PreTrainedTokenizerBase]:
        """Further tokenizers of an export, by the folders that they are in."""
        return {}

    def head_fits(self, config: PreTrainedConfig) -> bool:
        """Whether the head that comes with a model of this configuration is for this task type and its labels. A
        configuration that names no class counts as one of the right type."""
        ending = self.model_class.__name__.removeprefix("AutoModel")
        made_for = config.architectures or [ending]
        return any(name.endswith(ending) for name in made_for) and self.labels_fit(config)

    def labels_fit(self, config: PreTrainedConfig) -> bool:
        """Whether a head of this task type is for its labels."""
        return labels_of(config) == dict(enumerate(self.section.labels))

    def weigh(self, labels: np.ndarray) -> None:  # noqa: B027 (most weigh all alike)
        """Set the weights of the classes from the labels of the training split, where the task asks for some."""

    def objective(self, model: PreTrainedModel) -> Predictor:
        """The objective to train the model with."""
        if self.reads_text_alone and family(model.config).beside is Entities:
            base: Any = model.base_model
            base.leave_out_entities()
        made = type(self).objective_class(model)
        made.orders = self.orders
        if self.class_weights is not None:
            made.class_weights = torch.from_numpy(self.class_weights)
        return made

    def reopen(self, start: str, record: Record) -> tuple[Any, PreTrainedTokenizerBase]:
        """Objective and tokenizer of a model that was trained on the task, to predict with.

        Raises ``InputError`` for a model of another kind, or of other labels, and for one whose head is not there.
        """
        config = read_config(start, roles=ANY)
        if family(config).role == "encoder-decoder":
            raise self.another_kind(start, "translates")
        causal = family(config).causal
        tokenizer = load_tokenizer(start, "model", role=family(config).role)
        check_vocabulary(tokenizer, config, start, "model")
        named = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
        if not (named and self.reads_causal and self.labels_fit(config) if causal else self.head_fits(config)):
            raise self.another_kind(start, f"answers with: {head_in_words(config)}")
        model_class = AutoModelForSequenceClassification if causal else self.model_class
        settings = {"num_labels": 1} if causal else {}
        model, loaded = load(model_class, start, roles=ONE_STREAM, **{**settings, **self.settings()})
        if loaded.fresh:
            raise self.another_kind(start, f"has no weights for {', '.join(loaded.fresh[:4])}")
        return self.objective(model), with_transform_tokens(tokenizer) if causal else tokenizer

    def another_kind(self, start: str, does: str) -> InputError:
        """The error for a model that was not trained on the task, and that ``does`` something else."""
        section, labels = self.section, ", ".join(self.section.labels)
        wanted = f"{section.name} is of type {section.type}{f' with the labels {labels}' * bool(labels)}"
        return InputError(
            f"{start}: not a model of this task: it {does}, and {wanted}; give a model that was fine-tuned on the task"
        )

    def restore(self, chosen: Mapping[str, float]) -> None:  # noqa: B027 (most choose nothing)
        """Take what :meth:`choose` chose when the model was trained."""

    # Predictions and their scores.

    @abstractmethod
    def decide(self, outputs: np.ndarray, examples: Examples, index: np.ndarray) -> np.ndarray:
        """Predictions (N,) or (N, L) for the examples ``index`` (N,), from their outputs (M, K), end to end."""

    @abstractmethod
    def scores(
        self, predictions: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None = None
    ) -> dict[str, float]:
        """The task's metrics, in their order; without ``outputs`` (M, K) those that need none."""

    def notes(self, predicted: Mapping[str, Predicted], means: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Lines to stand below the table of scores; ``means`` are those of the objective's terms, by split."""
        return []

    def class_report(self, predicted: Predicted) -> list[list[str]]:
        """Rows of a table, the first being the head, with the scores of each class; none where there are no classes."""
        return []

    @abstractmethod
    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """What is wrong with predictions that do not depend on the example, or None."""

    def choose(self, predicted: Predicted) -> dict[str, float]:
        """Choose on the first validation split what then holds for all, such as a threshold."""
        return {}

    def baselines(self, task: Task, split: str) -> dict[str, dict[str, float]]:
        """The metrics on a labelled split that are reached without an encoder, by the name of the baseline.

        Deterministic. Raises ``InputError`` where training split or labels are missing.
        """
        train, held_out = task.split("train"), task.split(split)
        if train.labels is None or held_out.labels is None:
            raise InputError(f"{self.section.name} {split}: a baseline needs labels, and this split has none")
        return {name: self.scores(found, held_out.labels) for name, found in self.guesses(train, held_out).items()}

    @abstractmethod
    def guesses(self, train: Split, held_out: Split) -> dict[str, np.ndarray]:
        """Predictions for ``held_out`` without an encoder, by the name of the baseline."""

    @abstractmethod
    def distances(self, predicted: Predicted) -> np.ndarray:
        """The error of each prediction (N,): 0 for a perfect one."""

    # What is written and shown.

    @abstractmethod
    def format_prediction(self, prediction: Any) -> str:
        """A prediction as a person would write it."""

    def format_label(self, label: Any) -> str:
        """A label as a person would write it."""
        return self.format_prediction(label)

    def format_text(self, text: Any) -> str:
        """A text of the split on one line."""
        return " ".join(text.split())

    def columns(self, predicted: Predicted) -> tuple[Sequence[str], np.ndarray]:
        """Names, and numbers (N, number of names) to write beside the prediction of each example."""
        return (), np.empty((predicted.split.num_examples, 0))

    def plain(self, prediction: Any) -> Any:
        """A prediction as a value of JSON."""
        return self.format_prediction(prediction)

    def fields(self, predicted: Predicted) -> dict[str, Sequence[Any]]:
        """What a file of predictions has of each example, as values of JSON: the prediction and :meth:`columns`."""
        names, numbers = self.columns(predicted)
        found: dict[str, Sequence[Any]] = {"prediction": [*map(self.plain, predicted.predictions)]}
        for name, column in zip(names, numbers.T, strict=True):
            found[name] = [*map(nine_digits, column)]
        return found

    def write(self, folder: Path, predicted: Predicted) -> list[Path]:
        """Write a split's predictions as the official scorer reads them, where there is one; returns the files."""
        return []

    def ensemble(self, files: Sequence[Path]) -> dict[str, float]:
        """The metrics of the mean of the outputs that several models wrote for one split, where a mean is defined."""
        return {}

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """Draw the first validation split's predictions; returns the pictures."""
        return []


def label_names(names: Sequence[str]) -> dict[str, Any]:
    """The names of labels as a model's configuration holds them."""
    both = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    return both if names else {}


def nine_digits(value: float) -> float:
    """A float32 without the digits that it does not have."""
    return float(f"{value:.9g}")
