"""What tasks come in that are no tables: SQuAD's json, and columns of words as in the CoNLL shared tasks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.config import InputError

WORDS, TAGS = "tokens", "tags"
"""What the first and the last column of words are called where nothing else is given."""
_DOCUMENT = "-DOCSTART-"


def squad_rows(document: Any) -> list[dict[str, Any]] | None:
    """The questions of SQuAD 1.1's or 2.0's json as rows; None for another json.

    A row has ``id``, ``title``, ``context``, ``question`` and, where the file has them, ``answers``. Raises
    ``ValueError`` where something is missing.
    """
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        return None
    rows: list[dict[str, Any]] = []
    for at, article in _each(document, "data", ""):
        for inside, paragraph in _each(article, "paragraphs", at):
            for where, question in _each(paragraph, "qas", inside):
                row = {
                    "id": _field(question, "id", where),
                    "title": article.get("title"),
                    "context": _field(paragraph, "context", inside),
                    "question": _field(question, "question", where),
                }
                rows.append(row | ({"answers": question["answers"]} if "answers" in question else {}))
    if not rows:
        raise ValueError("no questions in it")
    return rows


def _field(holder: dict[str, Any], name: str, where: str) -> Any:
    if name not in holder:
        raise ValueError(f"not in SQuAD's form, data > paragraphs > qas: {where} has no {name!r}")
    return holder[name]


def _each(holder: dict[str, Any], name: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, and where each is."""
    items = _field(holder, name, where)
    for number, item in enumerate(items if isinstance(items, list) else [items]):
        at = f"{where}{'.' if where else ''}{name}[{number}]"
        if not isinstance(item, dict) or not isinstance(items, list):
            raise ValueError(f"not in SQuAD's form, data > paragraphs > qas: {at} is no object in a list")
        yield at, item


def sentences(path: Path, lines: Iterable[str], header: Sequence[str]) -> tuple[dict[str, list[list[str]]], list[int]]:
    """Columns of lists, a list a sentence, and the line on which each sentence begins.

    A line holds a word and what is said of it, with tabs between, or where there is no tab with spaces; an empty line
    ends a sentence. Without ``header`` the first column is called ``tokens`` and the last one, if there are several,
    ``tags``. Lines that open a document (``-DOCSTART-``) are left out, and so are comments: lines before the first
    word of a sentence that begin with ``# `` and are no word ``#`` with as many fields as other words. Raises
    ``InputError`` with file and line where the number of columns changes.
    """
    numbered = [(number, fields) for number, fields in _fields(lines) if fields[:1] != [_DOCUMENT]]
    names = list(header) or _names(next((f for _, f in numbered if f and not _is_comment(f, 0)), []) or ["#"])
    rows: list[list[list[str]]] = []
    begins: list[int] = []
    open_sentence = False
    for number, fields in numbered:
        if not fields:
            open_sentence = False
        elif not open_sentence and _is_comment(fields, len(names)):
            continue
        elif len(fields) != len(names):
            raise InputError(f"{path}:{number}: {len(fields)} fields, where {len(names)} columns are expected")
        else:
            if not open_sentence:
                rows.append([[] for _ in names])
                begins.append(number)
                open_sentence = True
            for column, field in zip(rows[-1], fields, strict=True):
                column.append(field)
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}, begins


def _fields(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line, which LF, CR LF or CR ends; no fields of one that is blank."""
    ended = (part for line in lines for part in re.split("\r\n?|\n", re.sub("\r?\n$|\r$", "", line)))
    for number, line in enumerate(ended, 1):
        fields = line.split("\t") if "\t" in line else line.split()
        yield number, fields if any(field.strip() for field in fields) else []


def _names(fields: Sequence[str]) -> list[str]:
    """What the columns are called where nothing else is given."""
    return [WORDS, *(f"column {i}" for i in range(2, len(fields))), TAGS][: len(fields)]


def _is_comment(fields: Sequence[str], columns: int) -> bool:
    """Whether a line before a sentence is none of its words; ``#`` may be one."""
    return fields[0].startswith("# ") or (fields[0] == "#" and (len(fields) != columns or fields[2:3] == ["="]))
