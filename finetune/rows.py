"""From a row of a table to an example: which cells it needs, and what its label is. One class for each kind of task.

Labels become class ids, scores or one 0/1 for each label: always through names, never through order.

Rows whose texts or labels have parts: choices, words with tags, questions with answers.
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

from bertillery.config.section import InputError
from bertillery.data.tables import Table
from finetune.sources import Source
from finetune.task import SpansSection, TaskSection
from finetune.task_types.answers import Answer
from finetune.task_types.entities import entities, kinds

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

    def format_prediction(self, text: Any) -> str:
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


def objects(values: list[Any]) -> np.ndarray:
    """The values as an array (N,) of objects, whatever they are."""
    return np.fromiter(values, dtype=object, count=len(values))


class ChoiceRows(Rows):
    """What is to be continued, and its choices ``[text, ...]``, empty where there is none; labels are their numbers.

    In a single column of ``task.choices`` the choices are a list, or, as on the Hub, ``{"text": [...], "label":
    [...]}``; then the label is one of those beside them.
    """

    @property
    def columns(self) -> dict[str, str]:
        """Those of the texts and of the choices."""
        listed = ", ".join(self.section.choices)
        return super().columns | dict.fromkeys(self.section.choices, f"task.choices=[{listed}]")

    @property
    def names(self) -> list[str]:
        """The first text, and its choices."""
        return [self.section.text[0], "choices"]

    def text(self, cell: Any) -> Any:
        """A text, or choices in one cell."""
        return cell if isinstance(cell, list | dict) else super().text(cell)

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From the name of a choice to its number; where a row names its own, that is left to ``example``."""
        cells = table.columns[source.columns.get(self.section.choices[0], self.section.choices[0])]
        if any(isinstance(cell, dict) for cell in cells):
            return lambda cell: cell if isinstance(cell, str) else str(cell)
        return by_name(self.section, source, table, column)

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

    def format_prediction(self, text: Any) -> str:
        """Choices with slashes between."""
        return " ".join(text.split() if isinstance(text, str) else " / ".join(filter(None, text)).split())


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


class TokenRows(Rows):
    """Words ``[word, ...]``; labels are ids of their tags, int64 (number of words,)."""

    def text(self, cell: Any) -> Any:
        """A list of words."""
        if not isinstance(cell, list) or any(not isinstance(word, str) or not word.strip() for word in cell):
            raise ValueError(f"no list of words, none of them empty: {cell!r:.200}")
        return [as_text(word) for word in cell]

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a list of tags to their ids."""
        one = by_name(self.section, source, table, column)

        def tags(cell: Any) -> np.ndarray:
            if not isinstance(cell, list):
                raise ValueError(f"{column!r} holds {cell!r:.200}; a sentence has a list of tags")
            return np.array([one(tag) for tag in cell], dtype=np.int64)

        return tags

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """As many tags as words."""
        if label is not None and len(label) != len(texts[0]):
            raise ValueError(f"{len(texts[0])} words and {len(label)} tags")
        return texts, label

    def format_prediction(self, text: Any) -> str:
        """The words with spaces between."""
        return " ".join(text)

    def labels(self, labels: list[Any]) -> np.ndarray:
        """(N,) arrays."""
        return objects(labels)

    def describe(self, labels: np.ndarray) -> str:
        """How many words and entities there are."""
        found, names = entities(labels, self.section.labels)[:, 2], kinds(self.section.labels)
        numbers = np.bincount(found, minlength=len(names))
        listed = ", ".join(f"{name} {number:,}" for name, number in zip(names, numbers, strict=True))
        return f"{sum(map(len, labels)):,} words, {len(found):,} entities ({listed})"


def _start(value: Any) -> int:
    """Where an answer begins, in characters; ``ValueError`` for what is no place in a text."""
    if (isinstance(value, str) and value.isdecimal()) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"answer_start is {value!r:.200}; it is the number of characters of the context before it")
    return value


class SpanRows(Rows):
    """Question and context; labels are the answers ``(Answer, ...)``, each of which is in the context where it says."""

    label_needed = False
    unique_ids = True

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From ``[{"text": ..., "answer_start": ...}, ...]``, or a dictionary of lists as on the Hub.

        A question without an answer has an empty list, or empty lists. A start is an integer, also where a file has
        it as text (``"21"``) or as a float without a fraction (``21.0``).
        """

        def answers(cell: Any) -> tuple[Answer, ...]:
            wanted = f"{column!r} holds {cell!r:.200}; answers have text and answer_start"
            pairs = [cell] if isinstance(cell, dict) else cell
            if not isinstance(pairs, list) or not all(
                isinstance(p, dict) and {"text", "answer_start"} <= {*p} for p in pairs
            ):
                raise ValueError(f"{wanted}, and no answer is an empty list")
            found: list[Answer] = []
            for pair in pairs:
                texts, starts = pair["text"], pair["answer_start"]
                if isinstance(texts, list) != isinstance(starts, list):
                    raise ValueError(f"{wanted}, both lists or neither")
                texts, starts = (texts, starts) if isinstance(texts, list) else ([texts], [starts])
                if len(texts) != len(starts):
                    raise ValueError(f"{wanted}, as many of one as of the other")
                found += [Answer(as_text(text), _start(start)) for text, start in zip(texts, starts, strict=True)]
            return tuple(found)

        return answers

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """Every answer where it says it is."""
        if label is not None and not label and not (self.section.spans or SpansSection()).unanswerable:
            raise ValueError("a question without an answer; with task.spans.unanswerable=true there may be some")
        for answer in label or ():
            found = texts[1][answer.start : answer.start + len(answer.text)]
            if found != answer.text or not found.strip():
                raise ValueError(f"the answer {answer.text!r} is not in the context at {answer.start}, but {found!r}")
        return texts, label

    def labels(self, labels: list[Any]) -> np.ndarray:
        """(N,) tuples."""
        return objects(labels)

    def describe(self, labels: np.ndarray) -> str:
        """How many answers there are, and questions without one."""
        numbers = np.array([len(answers) for answers in labels])
        none = f", {int((numbers == 0).sum()):,} questions without one" if (numbers == 0).any() else ""
        return f"{int(numbers.sum()):,} answers{none}"
