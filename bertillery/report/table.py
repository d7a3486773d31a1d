"""Markdown: tables, model cards, and names that are text in them and nothing else.

Tab-separated tables that a spreadsheet opens as what they are, and that give back the text that was put in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bertillery.system.files import write_text
from bertillery.system.printable import printable

_MARKUP = re.compile(
    r"""\\(?=[!-/:-@\[-`{-~]|$)  # before anything that it would take the meaning from
    | [`*|] | (?<!\w)_ | _(?!\w)
    | <(?=[A-Za-z/!?])  # tags
    | &(?=\#?\w+;)  # entities
    | \](?=[(\[:])  # links""",
    re.VERBOSE,
)


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is: nothing in it is a tag, a link, emphasis, code, a table's cell or a new line.

    With backslashes (``\<``), and as few as do, since tables are printed, too.
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


def fenced(text: str, language: str) -> str:
    """Lines as a block of code, which nothing in them ends."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def page(head: Mapping[str, Any], title: str, *parts: str) -> str:
    """A page with metadata, as the Hub reads them, for others to read: paths of this machine are cut short
    (:func:`shortened`). ``parts`` are Markdown."""
    metadata = yaml.safe_dump(dict(head), sort_keys=False)
    return shortened("\n\n".join([f"---\n{metadata}---", f"# {escaped(title)}", *filter(None, parts)]) + "\n")


def card(head: Mapping[str, Any], title: str, *parts: str, config: str) -> str:
    """A model card: a page that ends with the configuration (YAML) by which the model was made."""
    return page(head, title, *parts, "## Configuration", fenced(config, "yaml"))


def shortened(text: str) -> str:
    """Text whose absolute paths say nothing about the machine: relative to the working directory where they are below
    it, else the last one or two of their parts."""

    def short(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(match[0]))
        if not os.path.exists(Path(*path.parts[:2])):  # "/" begins other things than paths, such as the name of a label
            return match[0]
        for root, prefix in ((Path.cwd(), Path()), (Path(os.path.expanduser("~")), Path("~"))):
            if path.is_relative_to(root) and len(root.parts) > 1:
                return str(prefix / path.relative_to(root))
        return "/".join(path.parts[-min(2, max(1, len(path.parts) - 3)) :])

    return re.sub(r"""(?<![\w./:~\\-])/[^\s'"`,;:|<>()\[\]{}]+""", short, text)


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
