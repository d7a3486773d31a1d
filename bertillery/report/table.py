"""Tables in Markdown and in tab-separated files, and names as text in Markdown.

A tab-separated file opens in a spreadsheet without formulas, and reading it gives back the text that was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bertillery.engine.objective import Shown
from bertillery.system.files import write_text
from bertillery.system.printable import printable

_MARKUP = re.compile(
    r"""\\(?=[!-/:-@\[-`{-~]|$)  # a backslash that would escape the next character
    | [`*|] | (?<!\w)_ | _(?!\w)
    | <(?=[A-Za-z/!?])  # tags
    | &(?=\#?\w+;)  # entities
    | \](?=[(\[:])  # links""",
    re.VERBOSE,
)


def escaped(text: str) -> str:
    r"""Text as Markdown that shows it unchanged: no tags, links, emphasis, code, table cells or line breaks.

    Escapes with backslashes (``\<``), and only where necessary, because tables are printed, too.
    """
    return _MARKUP.sub(lambda match: f"\\{match[0]}", printable(text))


def code(text: str) -> str:
    """Text as code within a line."""
    text = printable(text)
    ticks = "`" * (_longest_run(text) + 1)
    return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first being the head, as an aligned table."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def terms_table(
    values: Mapping[str, float],
    shown: Mapping[str, Shown],
    baselines: Mapping[str, float],
    columns: tuple[str, str] = ("model", "baseline"),
) -> str:
    """Held-out values of an objective's terms beside their baselines, in the order of ``shown``.

    ``columns`` are the heads of the two columns of numbers. A last column says what the baselines are, if terms do.
    """
    rows = [
        [term.title, f"{values[name]:.4f}", f"{baselines[name]:.4f}" if name in baselines else "", term.baseline]
        for name, term in shown.items()
        if name in values
    ]
    width = 4 if any(row[3] for row in rows) else 3
    return markdown_table([row[:width] for row in [["held-out", *columns, f"{columns[1]} is"], *rows]])


def fenced(text: str, language: str) -> str:
    """A code block; the fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


_FORMULA = ("=", "+", "-", "@")
"""Spreadsheets take cells that begin like this for formulas."""


def write_tsv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a line for each row.

    Text that begins like a formula gets an apostrophe in front, as in a spreadsheet. Control characters, including tabs
    and line breaks, are made visible.
    """
    lines = ("\t".join(map(_cell, row)) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_tsv(path: Path) -> list[list[str]]:
    """The rows of :func:`write_tsv`, without its apostrophes."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [
        [text[1:] if text[:1] == "'" and _marked(text[1:]) else text for text in line.split("\t")] for line in lines
    ]


def _cell(text: str) -> str:
    text = printable(text)
    return f"'{text}" if _marked(text) and not _is_number(text) else text


def _marked(text: str) -> bool:
    """Whether it needs an apostrophe: also if it begins with some of its own, so that reading is exact."""
    return text.lstrip("'").startswith(_FORMULA)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
