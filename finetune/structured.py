"""Rows whose texts or labels have parts: choices, words with tags, questions with answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from finetune.answers import Answer
from finetune.entities import entities, kinds
from finetune.rows import Rows, by_name
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

    numbered = False

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
        return str if isinstance(next(iter(cells), None), dict) else by_name(self.section, source, table, column)

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """The text and its choices, each behind what they begin with."""
        size = len(self.section.text)
        given, names = list(texts[size:]), None
        if isinstance(given[0], dict):
            given, names = given[0]["text"], [str(name) for name in given[0]["label"]]
        elif isinstance(given[0], list):
            given = given[0]
        if any(not isinstance(choice, str) for choice in given):
            raise ValueError(f"choices are texts, not {given!r:.200}")
        if len(given) > len(self.section.labels):
            raise ValueError(f"{len(given)} choices, and task.labels names {len(self.section.labels)}")
        if sum(bool(choice.strip()) for choice in given) < 2:
            raise ValueError(f"less than two choices: {given}")
        if names is not None and label is not None:
            if label not in names:
                raise ValueError(f"the label is {label!r}, and the choices are called {', '.join(names)}")
            label = names.index(label)
        if label is not None and (label >= len(given) or not given[label].strip()):
            raise ValueError(f"the label is that of choice {label + 1}, which is empty")
        begin = texts[1] + " " if size == 2 else ""
        return (texts[0], [begin + choice if choice.strip() else "" for choice in given]), label

    def in_words(self, text: Any) -> str:
        """Choices with slashes between."""
        return " ".join(text.split() if isinstance(text, str) else " / ".join(filter(None, text)).split())


class TokenRows(Rows):
    """Words ``[word, ...]``; labels are ids of their tags, int64 (number of words,)."""

    numbered = False

    def text(self, cell: Any) -> Any:
        """A list of words."""
        if not isinstance(cell, list) or any(not isinstance(word, str) or not word.strip() for word in cell):
            raise ValueError(f"no list of words, none of them empty: {cell!r:.200}")
        return cell

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a list of tags to their ids."""
        one = by_name(self.section, source, table, column)
        return lambda cell: np.array([one(tag) for tag in cell], dtype=np.int64)

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


class SpanRows(Rows):
    """Question and context; labels are the answers ``(Answer, ...)``, each of which is in the context where it says."""

    label_needed = False
    numbered = False

    def converter(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From ``[{"text": ..., "answer_start": ...}, ...]``, or a dictionary of lists as on the Hub."""

        def answers(cell: Any) -> tuple[Answer, ...]:
            try:
                if isinstance(cell, dict):
                    return tuple(map(Answer, cell["text"], cell["answer_start"]))
                return tuple(Answer(each["text"], each["answer_start"]) for each in cell or ())
            except (KeyError, TypeError):
                raise ValueError(f"{column!r} holds {cell!r:.200}, and answers have text and answer_start") from None

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
