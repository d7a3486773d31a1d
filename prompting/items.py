"""Items of an evaluation in context: a text with gaps for columns, answers to choose from, and worked examples.

A task's YAML says with its section ``prompt`` how rows become text. The rows are the task's own (``task``), or those of
files that only such an evaluation reads (``data``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, SerializeAsAny, model_validator

from bertillery.config.section import InputError, Section
from bertillery.config.types import Count
from bertillery.data.tables import Table, read_table
from finetune.data.splits import Split, Task, open_task
from finetune.task import TaskSection

_GAP = re.compile(r"\{(\w+)\}")
_TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
"""Ends of names of files with a text in each row; any other file is one text."""
Kind = Literal["choice", "cloze", "written", "text"]
"""Answers to choose from, one to produce token by token, one to write freely, or whole texts to read."""


class WrittenSection(Section):
    """An answer that the model writes instead of choosing it."""

    metric: Literal["rouge", "bleu"]
    """What compares answers with references: F1 of ROUGE-1, -2, -L and their average, or BLEU."""
    source: str
    """Column whose first sentences are the floor: a summary that copies the beginning, a translation that is none."""
    max_new_tokens: Count = 64
    """Tokens of an answer at most; it ends before at the end-of-text token, or at the separator."""
    top_k: int = Field(default=0, ge=0, le=10**7)
    """Sample from so many most probable tokens; 0 takes the most probable one always."""
    sentences: Count | None = None
    """Sentences of an answer that count; by default all."""


class PromptSection(Section):
    """How a row becomes text."""

    template: str
    """The text of an item, with ``{column}`` for the columns of a row."""
    labels: list[str] = Field(default=[])
    """How each label reads, in the order of ``task.labels``; by default as it is written there."""
    answer: str = " {answer}"
    """The answer as it follows the template. It begins with a space: without one, the last word of the template and the
    answer may be one token."""
    order: Literal["answer_last", "answer_first"] = "answer_last"
    """Whether answers are compared by their own probability, or, with ``answer_first``, by that of the template after
    them (partial scoring of Winograd-like sets, Trinh and Le 2018)."""
    description: str = ""
    """A text before everything."""
    separator: str = "\n\n"
    """Between worked examples."""
    written: WrittenSection | None = None
    """For answers that the model writes."""


class DataSection(Section):
    """Rows that only evaluations in context read."""

    name: str
    """Of the set."""
    files: dict[str, str]
    """The file of each split: ``test``, and ``train`` where there is one; without it examples are other test rows."""
    root: Path = Path()
    """Folder that ``files`` are relative to."""
    columns: list[str] = Field(default=[])
    """Names of the columns of a csv or tsv file without a header."""
    options: str | None = None
    """Column with the list of answers; without it the one answer is to be produced, token by token (cloze)."""
    gold: str | None = None
    """Column with the number of the right answer, from 0, or, without options, with the answer itself. Without it,
    whole texts are read and their perplexity is measured."""


class FewshotTask(Section):
    """A YAML for `make fewshot`."""

    prompt: PromptSection
    task: SerializeAsAny[TaskSection] | None = None
    """A fine-tuning task; its validation split is evaluated, its training split has the worked examples."""
    data: DataSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> FewshotTask:
        if (self.task is None) == (self.data is None):
            raise ValueError("give the section task (rows of a fine-tuning task) or the section data, one of them")
        if self.data is not None and self.data.options is not None and self.data.gold is None:
            raise ValueError("data.gold: a set with data.options needs the column with the number of the right answer")
        if self.prompt.written is not None and self.kind != "written":
            raise ValueError("prompt.written needs the references in a column data.gold, and no data.options")
        return self

    @property
    def kind(self) -> Kind:
        """How items are evaluated."""
        if self.data is None or self.data.options is not None:
            return "choice"
        if self.data.gold is None:
            return "text"
        return "cloze" if self.prompt.written is None else "written"


@dataclass(frozen=True)
class Item:
    """One row as text."""

    text: str
    """The filled template."""
    answers: tuple[str, ...]
    """As they follow the text, or, with ``answer_first``, as they precede it."""
    gold: int
    source: str = ""
    """The text whose beginning is the floor of a written answer."""


@dataclass(frozen=True)
class Items:
    """A task's items with everything that makes prompts of them."""

    name: str
    items: list[Item]
    pool: list[Item]
    """Worked examples are drawn from these."""
    pool_is_items: bool
    prompt: PromptSection
    kind: Kind

    def context(self, item: Item, shots: Sequence[Item]) -> str:
        """What stands before the answer: description, worked examples, and the item's text."""
        return f"{self._before(shots)}{item.text}"

    def pairs(self, item: Item, shots: Sequence[Item]) -> list[tuple[str, str]]:
        """Context and continuation for each answer, with worked examples before."""
        if self.prompt.order == "answer_first":
            before = self._before(shots)
            return [(f"{before}{answer}", item.text) for answer in item.answers]
        return [(self.context(item, shots), answer) for answer in item.answers]

    def _before(self, shots: Sequence[Item]) -> str:
        worked = [self._joined(shot, shot.answers[shot.gold]) for shot in shots]
        return "".join(f"{part}{self.prompt.separator}" for part in filter(None, [self.prompt.description, *worked]))

    def _joined(self, item: Item, answer: str) -> str:
        return f"{answer}{item.text}" if self.prompt.order == "answer_first" else f"{item.text}{answer}"


def read_items(config: FewshotTask, data_dir: Path) -> Items:
    """The items of a task; raises ``InputError`` for data that are not there and for a template that names a column
    that is not there."""
    if config.data is not None:
        return _from_files(config.prompt, config.data, config.kind)
    assert config.task is not None
    return _from_task(config.prompt, open_task(config.task, data_dir))


def _from_task(prompt: PromptSection, task: Task) -> Items:
    section: Any = task.section
    if section.type not in ("classification", "choice"):
        raise InputError(
            f"task.type: {section.name} is of type {section.type}; tasks of type classification and choice can be "
            "evaluated in context"
        )
    names = prompt.labels or [*map(str, section.labels)]
    if section.type == "classification" and len(names) != len(section.labels):
        raise InputError(f"prompt.labels: given {names}; one for each of task.labels is needed: {section.labels}")

    def items(split: Split) -> list[Item]:
        found = []
        for number in range(split.num_examples):
            texts = [texts[number] for texts in split.texts]
            answers = names if section.type == "classification" else [choice for choice in texts[1] if choice]
            row = dict(zip(section.text, texts, strict=False))
            gold = int(split.labels[number]) if split.labels is not None else -1
            found.append(_item(prompt, row, answers, gold, section.name))
        return found

    evaluated = task.split(section.validation[0])
    if evaluated.labels is None:
        raise InputError(f"{section.name}: the split {evaluated.name} has no labels")
    return Items(section.name, items(evaluated), items(task.split("train")), False, prompt, "choice")


def _from_files(prompt: PromptSection, data: DataSection, kind: Kind) -> Items:
    if "test" not in data.files:
        given = ", ".join(data.files) or "none"
        raise InputError(f"data.files: given {given}; {data.name} needs test, the split to evaluate")

    def items(split: str) -> list[Item]:
        path = data.root / data.files[split]
        if not path.is_file():
            raise InputError(f"data.files.{split}: {path}: no such file; set data.root to its folder")
        if kind == "text" and not path.name.lower().endswith(_TABLES):
            return [Item(path.read_text(encoding="utf-8"), (), 0)]
        table = read_table(path, header=data.columns, needed=data.columns)
        written = prompt.written
        for column in filter(None, [data.options, data.gold, written and written.source]):
            if column not in table.columns:
                raise InputError(f"{path}: no column {column!r}; there are: {', '.join(table.columns)}")
        return [_of_row(prompt, data, table, number) for number in range(len(table.lines))]

    test = items("test")
    if not test:
        raise InputError(f"data.files.test: {data.root / data.files['test']} has no rows")
    pool = items("train") if "train" in data.files else test
    return Items(data.name, test, pool, "train" not in data.files, prompt, kind)


def _of_row(prompt: PromptSection, data: DataSection, table: Table, number: int) -> Item:
    row = {name: cells[number] for name, cells in table.columns.items()}
    gold = None if data.gold is None else row[data.gold]
    if data.options is None:
        item = _item(prompt, row, [] if gold is None else [str(gold)], 0, table.where)
        return item if prompt.written is None else replace(item, source=str(row[prompt.written.source]))
    answers = row[data.options]
    if not isinstance(answers, list) or len(answers) < 2:
        raise InputError(
            f"{table.place(number)}: {data.options} is {answers!r:.80}; it is a list of answers, 2 or more"
        )
    if not str(gold).isdigit() or int(str(gold)) >= len(answers):
        raise InputError(
            f"{table.place(number)}: {data.gold} is {gold!r:.80}; it is the number of one of {len(answers)} answers, "
            f"from 0 to {len(answers) - 1}"
        )
    return _item(prompt, row, [*map(str, answers)], int(str(gold)), table.where)


def _item(prompt: PromptSection, row: Mapping[str, Any], answers: Sequence[str], gold: int, where: str) -> Item:
    def filled(match: re.Match[str]) -> str:
        if match[1] not in row:
            raise InputError(
                f"prompt.template: {where} has no column {match[1]!r}; it has {', '.join(row)}; the template is "
                f"{prompt.template!r}"
            )
        return str(row[match[1]])

    text = _GAP.sub(filled, prompt.template)
    return Item(text, tuple(prompt.answer.replace("{answer}", answer) for answer in answers), gold)


def check_shots(items: Items, count: int) -> None:
    """``InputError`` where so many worked examples cannot be drawn."""
    others = len(items.pool) - items.pool_is_items
    if count > others:
        raise InputError(f"shots: given {count}; {items.name} has {others} other rows to draw from")


def draw_shots(items: Items, number: int, count: int, seed: int) -> list[Item]:
    """``count`` worked examples for item ``number``: a pure function of seed and item, never the item itself."""
    check_shots(items, count)
    rng = np.random.default_rng([seed, number])
    drawn: list[int] = rng.permutation(len(items.pool))[: count + 1].tolist()
    kept = [place for place in drawn if not (items.pool_is_items and place == number)]
    return [items.pool[place] for place in kept[:count]]
