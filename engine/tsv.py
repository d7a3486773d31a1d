"""Tab-separated tables that a spreadsheet opens as what they are, and that give back the text that was put in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.files import write_text
from engine.printable import printable

_FORMULA = ("=", "+", "-", "@")
"""A spreadsheet computes a cell that begins so, whatever file it comes from."""


def write_tsv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a line for each row; a cell of text that begins like a formula gets an apostrophe before it, as it is
    typed into a spreadsheet, and control characters, among them tabs and new lines, are made visible."""
    lines = ("\t".join(map(_cell, row)) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_tsv(path: Path) -> list[list[str]]:
    """The rows that were written, apostrophes taken off again."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [
        [text[1:] if text[:1] == "'" and _marked(text[1:]) else text for text in line.split("\t")] for line in lines
    ]


def _cell(text: str) -> str:
    text = printable(text)
    return f"'{text}" if _marked(text) and not _is_number(text) else text


def _marked(text: str) -> bool:
    """Whether an apostrophe goes before it: those that it begins with itself must not be taken for one of ours."""
    return text.lstrip("'").startswith(_FORMULA)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
