"""What tasks come in that are no tables: SQuAD's json, and columns of words as in the CoNLL shared tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    try:
        rows = [
            {
                "id": question["id"],
                "title": article.get("title"),
                "context": paragraph["context"],
                "question": question["question"],
                **({"answers": question["answers"]} if "answers" in question else {}),
            }
            for article in document["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not in SQuAD's form, data > paragraphs > qas: {error!r}") from None
    if not rows:
        raise ValueError("no questions in it")
    return rows


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
