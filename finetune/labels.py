"""Cells of a label column to class ids, scores or one 0/1 for each label: always through names, never through order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.config import InputError
from finetune.sources import Source
from finetune.tables import Table
from finetune.task import TaskSection

NO_LABEL = (None, "", -1, "-1")
"""What stands for a label in a test split that has none."""


def converter(section: TaskSection, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
    """From a cell to class id, score, or 0/1 per label; what it returns raises ``ValueError`` for what is none."""
    if section.type == "regression":
        return lambda cell: _score(cell, section.range)
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
        if cell in written:
            return written[cell]
        hint = "" if source.values or names is not None else "; task.values says how a file writes them, in that order"
        raise ValueError(f"{column!r} holds {cell!r}, which is none of {', '.join(map(str, written))}{hint}")

    def several(cell: Any) -> np.ndarray:
        cells = [part for part in cell.split(",") if part.strip()] if isinstance(cell, str) else cell or []
        chosen = np.zeros(len(section.labels), dtype=np.float32)
        chosen[[one(part) for part in cells]] = 1
        return chosen

    return one if section.type == "classification" else several


def _labels_wanted(section: TaskSection, table: Table, column: str, names: Sequence[str] | None) -> str:
    found = Counter(map(str, table.columns[column])) if names is None else Counter(names)
    listed = ", ".join(
        f"{name!r} ({count:,})" if names is None else repr(name) for name, count in found.most_common(20)
    )
    offer = ", ".join(names or sorted(found)[:20])
    return (
        f"{section.name}: task.labels is empty; give the labels in the order of their ids, e.g. "
        f"task.labels='[{offer}]'. "
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
