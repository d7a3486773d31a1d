"""Rows whose texts or labels have parts: choices, words with tags, questions with answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune.answers import Answer
from finetune.entities import entities, kinds
from finetune.rows import Rows, as_text, by_name
from finetune.sources import Source
from finetune.tables import Table
from finetune.task import SpansSection


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

    def in_words(self, text: Any) -> str:
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

    def in_words(self, text: Any) -> str:
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
