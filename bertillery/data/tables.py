"""Files and data sets of the Hub as tables: columns that remember which line a row was on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from bertillery.config.section import InputError
from bertillery.data import files
from bertillery.system.records import checked

if TYPE_CHECKING:
    import pyarrow

TOKENS, TAGS = "tokens", "tags"
"""Names of the first and the last column of a conll file without a header."""
SUFFIXES = files.suffixes(".csv", ".tsv", ".jsonl", ".json", ".conll", ".txt")
"""Suffixes of tables."""


@dataclass(frozen=True)
class Table:
    """Rows, by column."""

    where: str
    """File, or data set of the Hub."""
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    """Line of each row in the file, or its number from 1 (:attr:`counted`)."""
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """Names of the classes that the numbers of a column stand for, where the table has them."""
    incomplete: dict[int, str] = field(default_factory=dict)
    """Rows with more or fewer fields than there are columns, and what is wrong with them; their cells are all None."""
    counted: str = ""
    """What ``lines`` numbers if not lines: rows, or questions."""

    def place(self, row: int) -> str:
        """The line, or the number, of a row that is counted from 0."""
        return f"{self.where}:{f' {self.counted} ' if self.counted else ''}{self.lines[row]}"


def read_table(path: Path, *, header: Sequence[str], needed: Sequence[str]) -> Table:
    """Read one file.

    The columns of a csv or tsv file are named by its first line, or by ``header``, if that is given and the first line
    lacks one of ``needed``. A json file is SQuAD's, or has a row on each line. Raises ``InputError`` with the file and
    the line where it cannot be read.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: unsupported file type; tables end with one of {', '.join(SUFFIXES)}")
    suffix = files.format_of(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix in (".csv", ".tsv"):
        # Text in a tsv file may hold a carriage return.
        return _from_rows(path, files.delimited_rows(path, files.Decoder(), cr=suffix == ".csv"), header, needed)
    if suffix in (".conll", ".txt"):
        return _read_conll(path, header)
    return (suffix == ".json" and _read_squad(path)) or _read_json(path)


def _from_rows(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: Sequence[str], needed: Sequence[str]
) -> Table:
    start = next(rows, None)
    if start is None:
        raise InputError(f"{path}: empty file")
    names, found = start[1], []
    if header and not set(needed) <= set(names):
        names, found = list(header), [start]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns of the same name in the first line: {', '.join(map(repr, names))}")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    lines, incomplete = [], {}
    for at, (number, row) in enumerate((*found, *rows)):
        if len(row) != len(names):
            incomplete[at] = f"{len(row)} fields where there are {len(names)} columns"
        lines.append(number)
        for column, cell in zip(columns.values(), [None] * len(names) if at in incomplete else row, strict=True):
            column.append(cell)
    return Table(str(path), columns, lines, incomplete=incomplete)


def _read_json(path: Path) -> Table:
    found = list(files.json_objects(path, files.read_lines(path, files.Decoder())))
    return _from_objects(path, [row for _, row in found], [number for number, _ in found])


def _from_objects(path: Path, rows: Sequence[dict[str, Any]], numbers: Sequence[int], counted: str = "") -> Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), {name: [row.get(name) for row in rows] for name in names}, numbers, counted=counted)


class _Question(BaseModel):
    id: Any
    question: Any
    answers: Any = None


class _Paragraph(BaseModel):
    context: Any
    qas: list[_Question]


class _Article(BaseModel):
    title: Any = None
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    data: list[_Article]


def _read_squad(path: Path) -> Table | None:
    """The questions of a file in SQuAD's form: columns ``id``, ``title``, ``context``, ``question`` and, if there are
    any, ``answers``; None for other JSON."""
    document = _json_document(path)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        return None
    remedy = "not in SQuAD's form: data > paragraphs > qas"
    articles = checked(path, {"data": document["data"]}, _Squad, remedy=remedy).data
    rows = [
        {"id": each.id, "title": article.title, "context": paragraph.context, "question": each.question}
        | ({"answers": each.answers} if "answers" in each.model_fields_set else {})
        for article in articles
        for paragraph in article.paragraphs
        for each in paragraph.qas
    ]
    if not rows:
        raise InputError(f"{path}: no questions in it")
    return _from_objects(path, rows, range(1, len(rows) + 1), counted="question")


def _json_document(path: Path) -> Any:
    """The content of a file that is one JSON document; None for any other file."""
    parts: list[str] = []
    size, seen = 0, False
    for line in files.read_lines(path, files.Decoder(), what="document"):
        if not seen and not line.isspace():
            seen, first = True, _parsed(line)
            if isinstance(first, dict) and not isinstance(first.get("data"), list):
                return None
        parts.append(line)
        size += len(line)
        if size > files.LIMITS["document"]:
            raise files.too_large(str(path), "document")
    return _parsed("".join(parts))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_conll(path: Path, header: Sequence[str]) -> Table:
    """Columns of lists, a list a sentence, and the line on which each sentence begins.

    A line holds a token and its annotations, separated by tabs, or by spaces where it has no tab; an empty line ends a
    sentence. Without ``header`` the first column is called ``tokens`` and the last one, if there are several,
    ``tags``. Lines that open a document (``-DOCSTART-``) are left out, and so are comments.
    """
    numbered = [(number, fields) for number, fields in _conll_fields(path) if fields[:1] != ["-DOCSTART-"]]
    first = next((fields for _, fields in numbered if fields and not _is_comment(fields, 0)), []) or ["#"]
    names = list(header) or [TOKENS, *(f"column {i}" for i in range(2, len(first))), TAGS][: len(first)]
    rows: list[list[list[str]]] = []
    begins: list[int] = []
    within_sentence = False
    for number, fields in numbered:
        if not fields:
            within_sentence = False
        elif not within_sentence and _is_comment(fields, len(names)):
            continue
        elif len(fields) != len(names):
            raise InputError(f"{path}:{number}: {len(fields)} fields, where {len(names)} columns are expected")
        else:
            if not within_sentence:
                rows.append([[] for _ in names])
                begins.append(number)
                within_sentence = True
            for column, field in zip(rows[-1], fields, strict=True):
                column.append(field)
    if not begins:
        raise InputError(f"{path}: empty file")
    return Table(str(path), {name: [row[i] for row in rows] for i, name in enumerate(names)}, begins)


def _conll_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line; no fields for a blank one."""
    for number, line in enumerate(files.read_lines(path, files.Decoder()), 1):
        fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        yield number, fields if any(field.strip() for field in fields) else []


def _is_comment(fields: Sequence[str], columns: int) -> bool:
    """Whether a line is a comment before a sentence: it begins with ``# ``, or with ``#`` and differs from a token."""
    return fields[0].startswith("# ") or (fields[0] == "#" and (len(fields) != columns or fields[2:3] == ["="]))


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa

    with files.open_parquet(path) as file:
        batches = (batch for _, batch in files.parquet_batches(path, file))
        table = pa.Table.from_batches(batches, file.schema_arrow)
    return from_arrow(str(path), table, _features(path, (table.schema.metadata or {}).get(b"huggingface", b"{}")))


def _features(path: Path, described: bytes) -> Mapping[str, Any]:
    """The description of the columns that a data set of the Hub stores in the file."""
    found = _parsed(described.decode(errors="replace"))
    for key in ("info", "features"):
        if not isinstance(found, dict):
            raise InputError(f"{path}: its description as a data set is damaged; fetch or write the file again")
        found = found.get(key) or {}
    return found if isinstance(found, dict) else {}


def from_arrow(where: str, table: pyarrow.Table, features: Mapping[str, Any]) -> Table:
    """A table of ``pyarrow``; ``features`` describes its columns as a data set's ``features.to_dict()`` does.

    Raises ``InputError`` with the row for a cell that cannot be read, such as text that is not UTF-8.
    """
    if len({*table.column_names}) < table.num_columns:
        raise InputError(f"{where}: two columns of the same name: {', '.join(map(repr, table.column_names))}")
    columns = {name: _cells(where, name, table.column(name)) for name in table.column_names}
    names = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            names[column] = _class_names(where, column, inner.get("names"))
    return Table(where, columns, range(1, table.num_rows + 1), names, counted="row")


def _class_names(where: str, column: str, found: Any) -> list[str]:
    """The names of a column's classes in order: a list, or by number, as a data set's card writes them."""
    if isinstance(found, dict) and {*map(str, found)} == {*map(str, range(len(found)))}:
        found = [name for _, name in sorted(found.items(), key=lambda item: int(item[0]))]
    if not isinstance(found, list | None):
        raise InputError(f"{where}: the names of the classes of {column!r} are no list: {found!r:.200}; write it again")
    return [str(name) for name in found or ()]


def _cells(where: str, name: str, column: Iterable[Any]) -> list[Any]:
    cells = []
    for number, cell in enumerate(column, 1):
        try:
            cells.append(cell.as_py())
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python lacks
            raise InputError(f"{where}: row {number}: {name!r} cannot be read ({error}); write it again") from None
    return cells
