"""What tasks come in that are no tables: SQuAD's json, and columns of words as in the CoNLL shared tasks."""

from __future__ import annotations

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
    ``tags``. Lines that open a document (``-DOCSTART-``) are left out. Raises ``InputError`` with file and line where
    the number of columns changes.
    """
    rows: list[list[list[str]]] = []
    begins: list[int] = []
    names, open_sentence = list(header), False
    for number, line in enumerate(lines, 1):
        fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if not any(field.strip() for field in fields):
            open_sentence = False
            continue
        if fields[0] == _DOCUMENT:
            continue
        names = names or [WORDS, *(f"column {i}" for i in range(2, len(fields))), TAGS][: len(fields)]
        if len(fields) != len(names):
            raise InputError(f"{path}:{number}: {len(fields)} fields, where {len(names)} columns are expected")
        if not open_sentence:
            rows.append([[] for _ in names])
            begins.append(number)
            open_sentence = True
        for column, field in zip(rows[-1], fields, strict=True):
            column.append(field)
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}, begins
