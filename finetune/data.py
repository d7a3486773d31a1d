"""A task's rows to splits of texts and labels, with every row that cannot be used named."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import InputError
from finetune.labels import NO_LABEL, converter
from finetune.sources import Source, find_source
from finetune.tables import Table
from finetune.task import TaskSection

logger = logging.getLogger(__name__)
_LISTED = 5


@dataclass(frozen=True)
class Split:
    """Examples of one split, in the order of the source."""

    name: str
    texts: tuple[list[str], ...]
    """One list of texts, or two of a pair."""
    labels: np.ndarray | None
    """Class ids int64 ``(N,)``, scores float32 ``(N,)``, or 0/1 float32 ``(N, L)``; None where there are none."""
    index: np.ndarray
    """Official number of each example, int64 ``(N,)``; the row's number from 0 where there is none."""
    left_out: int = 0
    """Incomplete rows that are not among the examples."""

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.texts[0])


@dataclass(frozen=True)
class Task:
    """A task with its data."""

    section: TaskSection
    splits: dict[str, Split]
    """Those that the source has, in the order of ``section.splits``."""
    missing: dict[str, str]
    """For each of the others, where it was looked for."""
    where: str
    """The source."""

    def split(self, name: str) -> Split:
        """The split of that name; ``InputError`` that says where it was looked for if the source lacks it."""
        if name in self.splits:
            return self.splits[name]
        if name not in self.missing:
            raise InputError(f"{self.section.name}: no split {name!r}; there are: {', '.join(self.section.splits)}")
        there = ", ".join(self.splits) or "none"
        raise InputError(f"{self.section.name} has no {name} split: {self.missing[name]}; there are: {there}")


def read_task(section: TaskSection, *, data_dir: Path, glue_dir: Path | None) -> Task:
    """Read all splits that the task's source has; what has to be made first is made in ``data_dir``.

    Raises ``InputError``: for a source that is not there, a column that is not there (listing those that are), and,
    once for all splits, for rows without text and labels that are none, counted and the first ones with file and line.
    """
    source = find_source(section, data_dir=data_dir, glue_dir=glue_dir)
    splits: dict[str, Split] = {}
    missing: dict[str, str] = {}
    problems: list[str] = []
    for name in section.splits:
        try:
            tables = source.read(name)
        except FileNotFoundError as error:
            missing[name] = str(error)
            continue
        reader = _SplitReader(section, source, name)
        for table in tables:
            reader.read(table)
        if reader.problems:
            problems.append(_listing(f"{section.name} {name}", reader.problems, reader.num_rows))
        else:
            splits[name] = reader.split()
    if problems:
        raise InputError("\n".join(problems))
    return Task(section, splits, missing, source.where)


def report(task: Task) -> str:
    """What was read, a line each: sizes, shares of the labels, and how many examples training has as well."""
    section = task.section
    kind = f"{section.type}{' of pairs' * (len(section.text) == 2)}, scored by {', '.join(section.metrics)}"
    lines = {"task": f"{section.name}: {kind}", "data": task.where}
    train = set(zip(*task.splits["train"].texts, strict=True)) if "train" in task.splits else set()
    for name, split in task.splits.items():
        shared = sum(texts in train for texts in zip(*split.texts, strict=True)) if name != "train" else 0
        parts = [f"{split.num_examples:,} examples", _labels_in_words(section, split.labels)]
        parts += [f"{split.left_out:,} incomplete rows left out"] if split.left_out else []
        parts += [f"{shared:,} of them also in train"] if shared else []
        lines[name] = ", ".join(parts)
    lines |= {name: f"missing: {why}" for name, why in task.missing.items()}
    width = max(11, *map(len, lines))
    return "\n".join(f"{name:<{width}} {text}" for name, text in lines.items())


def _labels_in_words(section: TaskSection, labels: np.ndarray | None) -> str:
    if labels is None:
        return "not labelled"
    if section.type == "regression":
        return f"scores {labels.min():g} to {labels.max():g}, mean {labels.mean():.3g}"
    shares = (
        labels.mean(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(section.labels)) / len(labels)
    )
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(section.labels, shares, strict=True))


def _listing(what: str, problems: Sequence[str], num_rows: int) -> str:
    head = f"{what}: {len(problems):,} of {num_rows:,} rows cannot be used:"
    more = [f"... and {len(problems) - _LISTED:,} more"] if len(problems) > _LISTED else []
    return "\n  - ".join([head, *problems[:_LISTED], *more])


class _SplitReader:
    """Gathers the rows of one split's tables."""

    def __init__(self, section: TaskSection, source: Source, name: str) -> None:
        self.section, self.source, self.name = section, source, name
        self.is_test = name in section.test
        self.texts: list[list[str]] = [[] for _ in section.text]
        self.labels: list[Any] = []
        self.index: list[int] = []
        self.problems: list[str] = []
        self.left_out: list[str] = []
        self.num_rows = self.num_unlabelled = 0

    def read(self, table: Table) -> None:
        """Add a table's rows; problems are gathered, wrong columns raise at once."""
        section = self.section
        texts = {
            self._called(name): self._column(table, name, f"task.text=[{', '.join(section.text)}]")
            for name in section.text
        }
        labels, label = None, self._called(section.label)
        if label in table.columns or not self.is_test:
            labels = self._column(table, section.label, f"task.label={section.label}")
            if self.is_test and all(cell in NO_LABEL for cell in labels):
                labels = None
        convert = None if labels is None else converter(section, self.source, table, label)
        numbers = table.columns.get(self._called(section.index)) if section.index else None
        for row in range(len(table.lines)):
            try:
                if not self._complete(table, row, texts, labels):
                    continue
                if labels is not None and convert is not None:
                    self.labels.append(convert(labels[row]))
                self.index.append(self.num_rows + row if numbers is None else _number(numbers[row]))
            except ValueError as error:
                self.problems.append(f"{table.where}:{table.lines[row]}: {error}")
                continue
            for column, cells in zip(self.texts, texts.values(), strict=True):
                column.append(cells[row] or "")
        self.num_rows += len(table.lines)
        self.num_unlabelled += labels is None

    def _called(self, name: str) -> str:
        return self.source.columns.get(name, name)

    def _column(self, table: Table, name: str, setting: str) -> list[Any]:
        if self._called(name) not in table.columns:
            there = ", ".join(map(repr, table.columns))
            raise InputError(
                f"{table.where}: no column {self._called(name)!r}; there are: {there}; name the column with {setting}"
            )
        return table.columns[self._called(name)]

    def _complete(self, table: Table, row: int, texts: Mapping[str, list[Any]], labels: Sequence[Any] | None) -> bool:
        """Whether the row is used; ``ValueError`` for one that may neither be used nor left out."""
        cells = {name: column[row] for name, column in texts.items()}
        if labels is not None and self.section.type != "multilabel":
            cells[self._called(self.section.label)] = labels[row]
        empty = [
            repr(name) for name, cell in cells.items() if cell is None or (isinstance(cell, str) and not cell.strip())
        ]
        if row not in table.incomplete and not empty:
            typed = next((cells[name] for name in texts if not isinstance(cells[name], str)), None)
            if typed is not None:
                raise ValueError(f"a {type(typed).__name__} where a text is expected: {typed!r}")
            return True
        wrong = table.incomplete.get(row, f"nothing in {' and '.join(empty)}")
        if self.section.incomplete == "fail" or (self.is_test and row in table.incomplete):
            raise ValueError(wrong)
        self.left_out.append(f"{table.where}:{table.lines[row]}: {wrong}")
        return self.is_test

    def split(self) -> Split:
        """All that was read; ``InputError`` if it is nothing, labelled in part, or in no order to submit."""
        section = self.section
        if not self.index:
            raise InputError(
                f"{section.name} {self.name}: no examples in {self.num_rows:,} rows of {self.source.where}"
            )
        if self.num_unlabelled and self.labels:
            raise InputError(f"{section.name} {self.name}: some of its files have labels and some have none")
        if self.left_out:
            kept = "kept, without the text" if self.is_test else "left out"
            logger.warning(
                "%s %s: %d of %d rows %s, the first is %s",
                section.name, self.name, len(self.left_out), self.num_rows, kept, self.left_out[0],
            )  # fmt: skip
        index = np.array(self.index, dtype=np.int64)
        if self.name in section.submission and (index != np.arange(len(index))).any():
            raise InputError(
                f"{section.name} {self.name}: the column {section.index!r} does not count from 0; "
                "a submission is in the official order"
            )
        labels = np.array(self.labels, dtype=np.int64 if section.type == "classification" else np.float32)
        left_out = 0 if self.is_test else len(self.left_out)
        return Split(self.name, tuple(self.texts), None if self.num_unlabelled else labels, index, left_out)


def _number(cell: Any) -> int:
    try:
        return int(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{cell!r} is no number of an example") from None
