"""Cells of a table as texts, ids and labels.

Labels become class ids, scores or one 0/1 for each label: always through names, never through order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bertillery.config.section import InputError
from bertillery.data.tables import Table
from finetune.data.sources import Source
from finetune.task import TaskSection

NO_LABEL = (None, "", -1, "-1")
"""What stands for a label in a test split that has none."""


def objects(values: list[Any]) -> np.ndarray:
    """The values as an array (N,) of objects, whatever they are."""
    return np.fromiter(values, dtype=object, count=len(values))


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


def class_id_reader(section: TaskSection, source: Source, table: Table, column: str) -> Callable[[Any], int]:
    """A function from a cell to a class id; the function raises ``ValueError`` for what is no label.

    Raises ``InputError`` where the task names no labels, or the table's own names of them differ from the task's.
    """
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
