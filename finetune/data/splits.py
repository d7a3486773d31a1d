"""A task's rows to splits of texts and labels, with every row that cannot be used named."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertillery.config.section import InputError
from bertillery.data import pydocs
from bertillery.data.tables import Table
from bertillery.run.inputs import Fingerprint, digest
from finetune.data.rows import as_id, objects, unlabelled
from finetune.data.sources import Source, find_source, glue_dir_from_environment
from finetune.task import TaskSection, task_type_of

if TYPE_CHECKING:
    from finetune.task_types.base import TaskType

logger = logging.getLogger(__name__)
_LISTED = 5
"""Rows that a message shows."""


@dataclass(frozen=True)
class Split:
    """Examples of one split, in the order of the source."""

    name: str
    texts: tuple[list[Any], ...]
    """One list of texts, or two of a pair; what a text is depends on the task type."""
    labels: np.ndarray | None
    """Class ids int64 ``(N,)``, scores float32 ``(N,)``, 0/1 float32 ``(N, L)``, or objects ``(N,)``; None where there
    are none."""
    index: np.ndarray
    """Id of each example ``(N,)``: what its column holds, as it is written there, or the row's number from 0."""
    left_out: int = 0
    """Incomplete rows that are not among the examples; among unlabelled ones they are, without their text."""

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.texts[0])

    def fingerprint(self) -> Fingerprint:
        """Of texts, labels and numbers, whatever the file they are from."""
        labels = [None] * self.num_examples if self.labels is None else self.labels
        return Fingerprint(digest(zip(*self.texts, labels, self.index, strict=True)), f"{self.num_examples:,} rows")


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
            asked = ", ".join(self.section.splits) or "none"
            raise InputError(f"{self.section.name}: no split {name!r}; there are: {asked}")
        there = ", ".join(self.splits) or "none"
        raise InputError(f"{self.section.name} has no {name} split: {self.missing[name]}; there are: {there}")


def open_task(section: TaskSection, data_dir: Path) -> Task:
    """:func:`read_task`, where ``GLUE_DIR`` says where GLUE is."""
    return read_task(section, data_dir=data_dir, glue_dir=glue_dir_from_environment())


def read_task(section: TaskSection, *, data_dir: Path, glue_dir: Path | None) -> Task:
    """Read all splits that the task's source has; what has to be made first is made in ``data_dir``.

    Raises ``InputError``: for a source that is not there, a column that is not there (listing those that are), and,
    once for all splits, for rows without text and labels that are none, counted and the first ones with file and line.
    """
    source = find_source(section, data_dir=data_dir, glue_dir=glue_dir)
    task_type = task_type_of(section)
    task_type.data_dir = data_dir
    splits: dict[str, Split] = {}
    missing: dict[str, str] = {}
    problems: list[str] = []
    skippable = False
    for name in section.splits:
        try:
            tables = source.read(name)
        except FileNotFoundError as error:
            missing[name] = str(error)
            continue
        reader = _SplitReader(task_type, source, name)
        for table in tables:
            reader.read(table)
        skippable |= reader.skippable
        if reader.problems:
            problems.append(_listing(f"{section.name} {name}", reader.problems, reader.num_rows))
        else:
            splits[name] = reader.split()
    if problems:
        remedy = ["task.incomplete=skip leaves out rows without text and with missing fields"] * skippable
        raise InputError("\n".join([*problems, *remedy]))
    return Task(section, splits, missing, source.where)


def read_unlabelled(task_type: TaskType, table: Table, name: str) -> tuple[Split | None, list[str]]:
    """The rows of a table as a split to be predicted, whose labels and ids are not looked at; None where it has no
    usable row. Then what is wrong with the other rows, for :func:`unusable`."""
    source = Source(name, lambda _: [], {}, task_type.section.values)
    reader = _SplitReader(task_type, source, name, labelled=False)
    reader.read(table)
    return reader.split() if reader.index else None, reader.problems


def unusable(section: TaskSection, problems: Sequence[str], num_rows: int) -> InputError:
    """The error for rows that cannot be predicted."""
    remedy = "task.incomplete=skip takes a text that is missing for an empty one"
    return InputError(f"{_listing(section.name, problems, num_rows)}\n{remedy}")


def row_inputs(task: Task) -> dict[str, Fingerprint]:
    """Fingerprints of the rows of all splits, by the names under which a run pins them."""
    return {f"{name} rows": split.fingerprint() for name, split in task.splits.items()}


def documentation_input(section: TaskSection) -> dict[str, Fingerprint]:
    """What an embedded task is made from, known without making it; nothing for others."""
    if not section.embedded:
        return {}
    return {"documentation": Fingerprint(pydocs.fingerprint(), pydocs.DESCRIPTION, exact=False)}


def current_rows(section: TaskSection, data_dir: Path) -> dict[str, Fingerprint]:
    """What the rows are made from now, as far as files of this machine say it: the Hub is not asked."""
    if section.embedded:
        return documentation_input(section)
    if section.files or glue_dir_from_environment():
        return row_inputs(open_task(section, data_dir))
    return {}


def report(task: Task) -> str:
    """What was read, a line each: sizes, shares of the labels, and how many examples training has as well."""
    section = task.section
    kind = f"{section.type}{' of pairs' * section.is_pair}, scored by {', '.join(section.metrics)}"
    lines = {"task": f"{section.name}: {kind}", "data": task.where}
    train = set(_hashable(task.splits["train"])) if "train" in task.splits else set()
    for name, split in task.splits.items():
        shared = sum(texts in train for texts in _hashable(split)) if name != "train" else 0
        described = "not labelled" if split.labels is None else task_type_of(section).describe_labels(split.labels)
        parts = [f"{split.num_examples:,} examples", described]
        parts += [f"{split.left_out:,} incomplete rows left out"] if split.left_out else []
        parts += [f"{shared:,} of them also in train"] if shared else []
        lines[name] = ", ".join(parts)
    lines |= {name: f"missing: {why}" for name, why in task.missing.items()}
    width = max(11, *map(len, lines))
    return "\n".join(f"{name:<{width}} {text}" for name, text in lines.items())


def _hashable(split: Split) -> Iterator[tuple[Any, ...]]:
    for texts in zip(*split.texts, strict=True):
        yield tuple(tuple(text) if isinstance(text, list) else text for text in texts)


def _listing(what: str, problems: Sequence[str], num_rows: int) -> str:
    head = f"{what}: {len(problems):,} of {num_rows:,} rows cannot be used:"
    more = [f"... and {len(problems) - _LISTED:,} more"] if len(problems) > _LISTED else []
    return "\n  - ".join([head, *problems[:_LISTED], *more])


class _SplitReader:
    """Gathers the rows of one split's tables."""

    def __init__(self, task_type: TaskType, source: Source, name: str, *, labelled: bool = True) -> None:
        self.task_type, self.section, self.source, self.name = task_type, task_type.section, source, name
        self.labelled = labelled
        """Whether labels and ids are read."""
        self.is_test = name in self.section.test or not labelled
        self.skippable = False
        """Whether there is a problem that ``task.incomplete=skip`` would not have."""
        self.texts: list[tuple[Any, ...]] = []
        self.labels: list[Any] = []
        self.index: list[int | str] = []
        self.places: dict[int | str, str] = {}
        self.problems: list[str] = []
        self.left_out: list[str] = []
        self.num_rows = self.num_unlabelled = 0

    def read(self, table: Table) -> None:
        """Add a table's rows; problems are gathered, wrong columns raise at once."""
        task_type, section = self.task_type, self.section
        texts = {name: self._column(table, name, setting) for name, setting in task_type.text_columns().items()}
        label = self._called(section.label)
        labels = task_type.label_cells(self.source, table, label) if self.labelled else None
        if labels is None and not self.is_test:
            self._column(table, section.label, f"task.label={section.label}{task_type.label_hint}")
        if labels is not None and self.is_test and all(map(unlabelled, labels)):
            labels = None
        convert = None if labels is None else task_type.label_reader(self.source, table, label)
        ids = self._ids(table)
        for row in range(len(table.lines)):
            try:
                if not self._complete(table, row, texts, labels):
                    continue
                cells = tuple(
                    task_type.read_text("" if column[row] is None else column[row]) for column in texts.values()
                )
                given = None if labels is None or convert is None else convert(labels[row])
                example, given = task_type.example(cells, given)
                index = self.num_rows + row if ids is None else as_id(self._called(section.index or ""), ids[row])
                if task_type.unique_ids and self.name != "train":
                    self._note(index, self._place(table, row))
            except ValueError as error:
                self.problems.append(f"{self._place(table, row)}: {error}")
                continue
            self.texts.append(example)
            self.index.append(index)
            if given is not None:
                self.labels.append(given)
        self.num_rows += len(table.lines)
        self.num_unlabelled += labels is None

    def _ids(self, table: Table) -> list[Any] | None:
        given = self.section.index if self.labelled else None
        return table.columns.get(self._called(given)) if given else None

    def _place(self, table: Table, row: int) -> str:
        """Where a row is, and its id where it has one."""
        ids = self._ids(table)
        return table.place(row) + ("" if ids is None else f" ({self.section.index} {ids[row]!r:.80})")

    def _note(self, index: int | str, place: str) -> None:
        """Remember which row has an id; ``ValueError`` for the second one that does."""
        if self.places.setdefault(index, place) != place:
            raise ValueError(f"{self.places[index]} has this id, too, and predictions are written by id")

    def _called(self, name: str) -> str:
        return self.source.columns.get(name, name)

    def _column(self, table: Table, name: str, setting: str) -> list[Any]:
        if self._called(name) not in table.columns:
            there = ", ".join(map(repr, table.columns)) or "none"
            raise InputError(
                f"{table.where}: no column {self._called(name)!r}; there are: {there}; name the column with {setting}"
            )
        return table.columns[self._called(name)]

    def _complete(self, table: Table, row: int, texts: Mapping[str, list[Any]], labels: Sequence[Any] | None) -> bool:
        """Whether the row is used; ``ValueError`` for one that may neither be used nor left out."""
        cells = {name: column[row] for name, column in texts.items() if name in self.section.text}
        if labels is not None and self.task_type.label_needed:
            cells[self.section.label] = labels[row]
        empty = [
            repr(self._called(name))
            for name, cell in cells.items()
            if cell is None or (not cell.strip() if isinstance(cell, str) else cell == [])
        ]
        if labels is not None and labels[row] == -1 and self._called(self.section.label) in table.class_names:
            empty.append(repr(self._called(self.section.label)))  # what data sets of the Hub say of a label nobody gave
        if row not in table.incomplete and not empty:
            return True
        wrong = table.incomplete.get(row, f"nothing in {' and '.join(empty)}")
        if self.section.incomplete == "fail" or (self.is_test and row in table.incomplete):
            self.skippable |= self.section.incomplete == "fail" and not self.is_test
            raise ValueError(wrong)
        self.left_out.append(f"{self._place(table, row)}: {wrong}")
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
        if self.left_out and self.labelled:
            kept = "kept, without the text" if self.is_test else "left out"
            logger.warning(
                "%s %s: %d of %d rows %s, the first is %s",
                section.name, self.name, len(self.left_out), self.num_rows, kept, self.left_out[0],
            )  # fmt: skip
        if self.name in section.submission and list(map(str, self.index)) != list(map(str, range(len(self.index)))):
            raise InputError(
                f"{section.name} {self.name}: the column {section.index!r} does not count from 0; "
                "a submission is in the official order"
            )
        labels = None if self.num_unlabelled else self.task_type.label_array(self.labels)
        left_out = 0 if self.is_test and self.labelled else len(self.left_out)
        return Split(self.name, tuple(map(list, zip(*self.texts, strict=True))), labels, objects(self.index), left_out)
