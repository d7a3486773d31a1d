"""From a row of a table to an example: which cells it needs, and what its label is. One class for each kind of task.

Labels become class ids, scores or one 0/1 for each label: always through names, never through order.
"""

from __future__ import annotations

import csv
import io
import json
import re
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
    unique_ids: ClassVar[bool] = False
    """Whether predictions are written by id, so that two examples of a split cannot share one."""

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
        return as_text(cell)

    def label_cells(self, source: Source, table: Table, column: str) -> list[Any] | None:
        """The cells of the labels, one for each row; None where the table has no such column."""
        return table.columns.get(column)

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
    """Any number of labels for each row: their names, a vector of 0 and 1, or a column of 0 and 1 for each label."""

    label_needed = False

    def label_cells(self, source: Source, table: Table, column: str) -> list[Any] | None:
        """Those of the column; without it, tuples of the columns that are called as the labels are written."""
        names = source.values or self.section.labels
        if column not in table.columns and names and all(name in table.columns for name in names):
            return list(zip(*(table.columns[name] for name in names), strict=True))
        return super().label_cells(source, table, column)

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a list, names with commas between, or a vector, to 0/1 for each label, float32 (L,)."""
        names = source.values or self.section.labels
        one_hot = column not in table.columns
        one = None if one_hot else by_name(self.section, source, table, column)
        as_vector = column not in table.class_names  # there numbers are known to be class ids

        def several(cell: Any) -> np.ndarray:
            if one is None:
                return _one_hot(names, cell)
            parts = _parts(column, cell)
            vector = _vector(column, cell, parts, names) if as_vector else None
            if vector is None:
                vector = np.zeros(len(names), dtype=np.float32)
                vector[[one(part) for part in parts]] = 1
            return vector

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


_BITS = {"0": 0, "0.": 0, "0.0": 0, "false": 0, "1": 1, "1.": 1, "1.0": 1, "true": 1}
_WRITTEN_BIT = r"(?:[01](?:\.0?)?|[Ff]alse|[Tt]rue)"
_WRITTEN_VECTOR = re.compile(rf"\[?\s*{_WRITTEN_BIT}(?:[\s,]+{_WRITTEN_BIT})*\s*\]?")
"""As json, csv, Python and numpy write one: ``[0, 1]``, ``0,1``, ``[False, True]``, ``[0. 1.]``."""


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


def as_text(cell: Any) -> str:
    """The text in a cell; ``ValueError`` for anything else, and for text that no encoding can write."""
    if not isinstance(cell, str):
        raise ValueError(f"a {type(cell).__name__} where a text is expected: {cell!r:.200}")
    try:
        cell.encode()
    except UnicodeEncodeError:
        raise ValueError(f"half a surrogate pair in a text, which is no character: {cell!r:.200}") from None
    return cell


def as_id(column: str, cell: Any) -> str:
    """The id of an example, as it is written; ``ValueError`` for what is none."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # a column of integers of which some are missing
    if isinstance(cell, bool) or not isinstance(cell, str | int) or not str(cell).strip():
        raise ValueError(f"{column!r} holds {cell!r:.200}; the id of an example is a text or an integer")
    if len(str(cell).split("\t")) > 1 or len(str(cell).splitlines()) > 1:
        raise ValueError(f"{column!r} holds {cell!r:.200}; an id has no tabs and no line breaks")
    return as_text(str(cell))


def unlabelled(cell: Any) -> bool:
    """Whether a cell of labels, or a tuple of them, says that there is no label."""
    return all(part in NO_LABEL for part in (cell if isinstance(cell, tuple) else (cell,)))


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
        if isinstance(cell, list | dict):
            several = "; several labels of a row need task.type=multilabel" * (section.type == "classification")
            raise ValueError(f"{column!r} holds {cell!r:.200} where one label is expected{several}")
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


_LARGEST = float(np.finfo(np.float32).max)


def _score(cell: Any, allowed: tuple[float, float] | None) -> float:
    try:
        if isinstance(cell, bool) or "_" in str(cell):  # float() takes both
            raise ValueError
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{cell!r} is no number") from None
    low, high = allowed or (-np.inf, np.inf)
    if not (abs(value) <= _LARGEST and low <= value <= high):
        raise ValueError(f"{cell!r} is no score from {low:g} to {high:g}")
    return value
