"""Any number of labels for each example: binary cross-entropy of each."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertillery.data.tables import Table
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from finetune.data.rows import class_id_reader
from finetune.data.sources import Source
from finetune.metrics import class_report
from finetune.predict import Predictor
from finetune.task_types.base import Predicted
from finetune.task_types.class_weights import WeightedSection, weights_of_labels
from finetune.task_types.vector import VectorType

_BITS = {"0": 0, "0.": 0, "0.0": 0, "false": 0, "1": 1, "1.": 1, "1.0": 1, "true": 1}
_WRITTEN_BIT = r"(?:[01](?:\.0?)?|[Ff]alse|[Tt]rue)"
_WRITTEN_VECTOR = re.compile(rf"\[?\s*{_WRITTEN_BIT}(?:[\s,]+{_WRITTEN_BIT})*\s*\]?")
"""As json, csv, Python and numpy write one: ``[0, 1]``, ``0,1``, ``[False, True]``, ``[0. 1.]``."""


class Config(WeightedSection):
    """Any number of labels for each text or pair of texts."""

    available_metrics = (
        *("macro_f1", "macro_precision", "macro_recall", "micro_f1", "micro_precision", "micro_recall"),
        *("accuracy", "roc_auc"),
    )


class Objective(Predictor):
    """Labels are 0 or 1 for each name, (B, L)."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``binary_cross_entropy`` in nats, the mean over the labels as in transformers' heads, and ``accuracy``, the
        share of examples with all labels right."""
        labels = batch.targets["labels"]
        weights = self.class_weights
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum", pos_weight=weights) / logits.shape[1]
        right = ((logits.detach() > 0) == (labels > 0)).all(-1).sum()
        return {"binary_cross_entropy": Term(loss, "examples"), "accuracy": Term(right, "examples", weight=0.0)}

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """(B, L, 2): that a label holds, and that it does not."""
        return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), -1)

    def distributions(self, logits: Tensor) -> int:
        """One for each label."""
        return logits.shape[1]

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Probability of each label."""
        return logits.sigmoid()


class Type(VectorType):
    """Labels and predictions are 0 or 1 for each name, (N, L)."""

    objective_class = Objective
    problem = "multi_label_classification"
    section: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    label_needed = False
    label_hint = ", or in task.labels a column of 0 and 1 for each label"

    def label_cells(self, source: Source, table: Table, column: str) -> list[Any] | None:
        """Those of the column; without it, tuples of the columns that are called as the labels are written."""
        names = source.values or self.section.labels
        if column not in table.columns and names and all(name in table.columns for name in names):
            return list(zip(*(table.columns[name] for name in names), strict=True))
        return super().label_cells(source, table, column)

    def label_reader(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a list, names with commas between, or a vector, to 0/1 for each label, float32 (L,)."""
        names = source.values or self.section.labels
        if column not in table.columns:
            return lambda cells: _one_hot(names, cells)
        one = class_id_reader(self.section, source, table, column)
        as_vector = column not in table.class_names  # there numbers are known to be class ids

        def several(cell: Any) -> np.ndarray:
            parts = _parts(column, cell)
            vector = _vector(column, cell, parts, names) if as_vector else None
            if vector is None:
                vector = np.zeros(len(names), dtype=np.float32)
                vector[[one(part) for part in parts]] = 1
            return vector

        return several

    def label_array(self, labels: list[Any]) -> np.ndarray:
        """(N, L) float32."""
        return np.array(labels, dtype=np.float32)

    def describe_labels(self, labels: np.ndarray) -> str:
        """How often each label is given."""
        return self.format_shares(labels.mean(axis=0))

    def weigh(self, labels: np.ndarray) -> None:
        """By how often each label is given."""
        self.class_weights = weights_of_labels(self.section, labels)

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """1 where a label is more probable than not, int64 (N, L)."""
        return (outputs > 0.5).astype(np.int64)

    def constant(self, labels: np.ndarray) -> Any:
        """The labels that most examples have, (L,)."""
        return np.round(labels.mean(axis=0, dtype=np.float64))

    def told_alike(self, prediction: Any, labels: np.ndarray) -> str:
        """The labels."""
        chosen = [repr(name) for name, on in zip(self.section.labels, prediction, strict=True) if on]
        return " and ".join(chosen) or "no label"

    def format_prediction(self, prediction: Any) -> str:
        """Names with commas between, as csv has them; nothing where no label is given."""
        return join_names(self.plain(prediction))

    def plain(self, prediction: Any) -> list[str]:
        """The names."""
        return [name for name, on in zip(self.section.labels, prediction, strict=True) if on]

    def parse_prediction(self, text: str) -> list[float]:
        """A row of 0 and 1."""
        given = split_names(text)
        return [float(name in given) for name in self.section.labels]

    def class_report(self, predicted: Predicted) -> list[list[str]]:
        """Precision, recall and F1 of each label."""
        return class_report(predicted.predictions, predicted.labels, self.section.labels)

    def distances(self, predicted: Predicted) -> np.ndarray:
        """The largest error among the labels."""
        return np.abs(predicted.outputs - predicted.labels).max(-1)


def split_names(text: str) -> list[str]:
    """Names with commas between, quoted where there is a comma in one: a line of csv."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), ()) if name.strip()]


def join_names(names: Iterable[str]) -> str:
    """The inverse of ``split_names``."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def _bit(cell: Any) -> int | None:
    return _BITS.get(str(cell).strip().lower())


def _one_hot(names: Sequence[str], cells: Sequence[Any]) -> np.ndarray:
    """A row's cells of the columns ``names`` as 0/1, float32 (L,); ``ValueError`` for anything else."""
    for name, cell in zip(names, cells, strict=True):
        if _bit(cell) is None:
            raise ValueError(f"{name!r} holds {cell!r}; the column of a label holds 0 or 1")
    return np.array([_bit(cell) for cell in cells], dtype=np.float32)


def _parts(column: str, cell: Any) -> list[Any]:
    """The names or numbers in a cell of several labels."""
    if isinstance(cell, str):
        return re.findall(_WRITTEN_BIT, cell) if _WRITTEN_VECTOR.fullmatch(cell.strip()) else split_names(cell)
    if not isinstance(cell, list | None):
        raise ValueError(
            f"{column!r} holds {cell!r}, and several labels are a list, names with commas between, or 0 and 1 for each "
            "label"
        )
    return cell or []


def _vector(column: str, cell: Any, parts: list[Any], names: Sequence[str]) -> np.ndarray | None:
    """The parts of a cell as 0/1 for each label, float32 (L,); None for a list of names.

    Raises ``ValueError`` for 0s and 1s that may be either, and for those that can be neither.
    """
    bits = [_bit(part) for part in parts]
    if not bits or None in bits:
        return None
    numbered = [name for name in names if _bit(name) is not None]
    if len(bits) == len(names) and not numbered:
        return np.array(bits, dtype=np.float32)
    if numbered and (len(bits) == len(names) or len({*bits}) < len(bits)):
        raise ValueError(
            f"{column!r} holds {cell!r}, which reads as a vector of 0 and 1 and as a list of labels that are written "
            f"{' and '.join(numbered)}; for vectors leave out task.values and give the labels other names, for lists "
            "write names"
        )
    if not numbered:
        raise ValueError(
            f"{column!r} holds {cell!r}; a vector has 0 or 1 for each of the {len(names)} labels "
            f"{', '.join(names)}, this one has {len(bits)}"
        )
    return None
