"""What a page is made of, so that HTML and Markdown show the same: sections of text, facts, tables, charts and marks.

All strings here are plain text; whoever renders them escapes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pages.chart import Chart

_NUMBER = re.compile(r"[-+~±<>(\[]?\d[\d.,:/ %e+±()\[\]–-]*( ?[kMGTPE]?(FLOP|B|h|s|min)?)?|-|")


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first is the head, the first column says what a row is."""

    caption: str
    rows: Sequence[Sequence[str]]
    theirs: frozenset[int] = frozenset()
    """Numbers of rows, the head being 0, that others published."""
    note: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and are set flush right."""
        columns = list(zip(*self.rows[1:], strict=True)) or [()] * len(self.rows[0])
        return [any(column) and all(_NUMBER.fullmatch(cell) for cell in column) for column in columns]


@dataclass(frozen=True)
class Lines:
    """Text whose lines stay as they are: commands, samples."""

    caption: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Mark:
    """A token with a share from 0 to 1, which is its colour, and what a reader is told of it."""

    token: str
    share: float
    said: str
    below: str = ""
    """A word that is written under the token."""


@dataclass(frozen=True)
class Marks:
    """Tokens in a row, marked by their shares."""

    caption: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Head:
    """One attention head."""

    layer: int
    head: int
    picture: str
    """Data URI of a PNG, a pixel for each weight: a row for each query, a column for each key, alpha from 0 to 255."""
    said: str
    """What it mostly looks at."""


@dataclass(frozen=True)
class Heads:
    """All attention heads of a model on one text."""

    caption: str
    queries: Sequence[str]
    """Tokens that look: rows."""
    keys: Sequence[str]
    """Tokens that are looked at: columns."""
    heads: Sequence[Head]
    direction: Literal["all", "earlier", "source"]
    """What a token sees: the whole text, itself and earlier tokens, or a source."""

    @property
    def layers(self) -> list[list[Head]]:
        """The heads of each layer."""
        numbers = dict.fromkeys(head.layer for head in self.heads)
        return [[head for head in self.heads if head.layer == number] for number in numbers]


Block = Paragraph | Facts | Table | Lines | Marks | Heads | Chart


@dataclass(frozen=True)
class Section:
    """A part of a page with a title."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """What links name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    about: str
    """One sentence below the title."""
    sections: Sequence[Section] = field(default_factory=list)

    @property
    def shown(self) -> list[Section]:
        """Sections that say something."""
        return [section for section in self.sections if section.blocks]
