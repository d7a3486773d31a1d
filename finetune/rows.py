"""From a row of a table to an example: which cells it needs, and what its label is. One class for each kind of task.

Labels become class ids, scores or one 0/1 for each label: always through names, never through order.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from engine.config import InputError
from finetune.sources import Source
from finetune.tables import Table
from finetune.task import TaskSection

NO_LABEL = (None, "", -1, "-1")
"""What stands for a label in a test split that has none."""


class Rows:
    """One label for each row, among names."""

    label_needed: ClassVar[bool] = True
    """Whether a row with an empty label is incomplete."""
    numbered: ClassVar[bool] = True
    """Whether the official name of an example is a number."""

    def __init__(self, section: TaskSection) -> None:
        self.section = section

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the texts, and the setting that names each."""
        return dict.fromkeys(self.section.text, f"task.text=[{', '.join(self.section.text)}]")

    @property
    def names(self) -> list[str]:
        """What the texts of an example are called."""
        return self.section.text

    def text(self, cell: Any) -> Any:
        """A text as it is kept; ``ValueError`` for what is none."""
        if not isinstance(cell, str):
            raise ValueError(f"a {type(cell).__name__} where a text is expected: {cell!r}")
        return cell

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a label's cell to the label; what it returns raises ``ValueError`` for what is none."""
        return by_name(self.section, source, table, column)

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """Texts and label (None without one) as the split holds them; ``ValueError`` where they do not belong."""
        return texts, label

    def in_words(self, text: Any) -> str:
        """A text of the split on one line."""
        return " ".join(text.split())

    def labels(self, labels: list[Any]) -> np.ndarray:
        """The labels of a split."""
        return np.array(labels, dtype=np.int64)

    def describe(self, labels: np.ndarray) -> str:
        """The labels of a split in words."""
        return self.shares(np.bincount(labels, minlength=len(self.section.labels)) / len(labels))

    def shares(self, shares: np.ndarray) -> str:
        """Shares of the labels, in the order of their ids."""
        return ", ".join(f"{name} {share:.1%}" for name, share in zip(self.section.labels, shares, strict=True))


class SeveralRows(Rows):
    """Any number of labels for each row."""

    label_needed = False

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a list, or names with commas between, to 0/1 for each label, float32 (L,)."""
        one = by_name(self.section, source, table, column)

        def several(cell: Any) -> np.ndarray:
            cells = split_names(cell) if isinstance(cell, str) else [] if cell is None else cell
            if not isinstance(cells, list):
                raise ValueError(
                    f"{column!r} holds {cell!r}, and several labels are a list, or names with commas between"
                )
            chosen = np.zeros(len(self.section.labels), dtype=np.float32)
            chosen[[one(part) for part in cells]] = 1
            return chosen

        return several

    def labels(self, labels: list[Any]) -> np.ndarray:
        """(N, L)."""
        return np.array(labels, dtype=np.float32)

    def describe(self, labels: np.ndarray) -> str:
        """How often each label is given."""
        return self.shares(labels.mean(axis=0))


class ScoreRows(Rows):
    """A score for each row."""

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a number, or what reads as one, to a number within ``task.range``."""
        return lambda cell: _score(cell, self.section.range)

    def labels(self, labels: list[Any]) -> np.ndarray:
        """(N,)."""
        return np.array(labels, dtype=np.float32)

    def describe(self, labels: np.ndarray) -> str:
        """Range and mean."""
        return f"scores {labels.min():g} to {labels.max():g}, mean {labels.mean():.3g}"


def split_names(text: str) -> list[str]:
    """Names with commas between, quoted where there is a comma in one: a line of csv."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), ()) if name.strip()]


def join_names(names: Iterable[str]) -> str:
    """What ``split_names`` takes apart."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def by_name(section: TaskSection, source: Source, table: Table, column: str) -> Callable[[Any], int]:
    """From a cell to a class id; what it returns raises ``ValueError`` for what is none."""
    names = table.class_names.get(column)
    if not section.labels:
        raise InputError(_labels_wanted(section, table, column, names))
    if names is not None:
        if sorted(names) != sorted(section.labels):
            raise InputError(f"{table.where}: {column!r} has the labels {names}, and task.labels is {section.labels}")
        written: dict[Any, int] = {number: section.labels.index(name) for number, name in enumerate(names)}
    else:
        written = {text: number for number, text in enumerate(source.values or section.labels)}

    def one(cell: Any) -> int:
        cell = cell if names is not None else str(cell).lower() if isinstance(cell, bool) else str(cell).strip()
        if cell in ("True", "False") and cell not in written:  # as Python and pandas write what YAML calls true, false
            cell = cell.lower()
        if cell in written:
            return written[cell]
        hint = "" if source.values or names is not None else "; task.values says how a file writes them, in that order"
        raise ValueError(f"{column!r} holds {cell!r}, which is none of {', '.join(map(str, written))}{hint}")

    return one


def _labels_wanted(section: TaskSection, table: Table, column: str, names: Sequence[str] | None) -> str:
    cells = (each for cell in table.columns[column] for each in (cell if isinstance(cell, list) else [cell]))
    found = Counter(map(str, cells)) if names is None else Counter(names)
    listed = ", ".join(
        f"{name!r} ({count:,})" if names is None else repr(name) for name, count in found.most_common(20)
    )
    offer = json.dumps([*(names or sorted(found)[:20])], ensure_ascii=False)
    return (
        f"{section.name}: task.labels is empty; give the labels in the order of their ids, e.g. "
        f"task.labels='{offer}'. "
        f"{table.where} holds in {column!r}: {listed}"
    )


def _score(cell: Any, allowed: tuple[float, float] | None) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{cell!r} is no number") from None
    low, high = allowed or (-np.inf, np.inf)
    if not (np.isfinite(value) and low <= value <= high):
        raise ValueError(f"{cell!r} is no score from {low:g} to {high:g}")
    return value
