"""Files and data sets of the Hub as tables: columns that remember which line a row was on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from bertillery.config.section import InputError
from bertillery.data import files
from bertillery.system.records import checked

if TYPE_CHECKING:
    import pyarrow

T = TypeVar("T")

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


@dataclass(frozen=True)
class Part:
    """How much of a file is held at a time; the last row may go beyond."""

    rows: int = 2048
    characters: int = 16_000_000


def read_table(path: Path, *, header: Sequence[str], needed: Sequence[str]) -> Table:
    """Read one file as a whole; otherwise as :func:`read_tables`."""
    (table,) = read_tables(path, header=header, needed=needed, most=None)
    return table


def read_tables(path: Path, *, header: Sequence[str], needed: Sequence[str], most: Part | None) -> Iterator[Table]:
    """The tables of one file's rows, in parts that hold no more than ``most``, at least one.

    The columns of a csv or tsv file are named by its first line, or by ``header``, if that is given and the first line
    lacks one of ``needed``; those of a jsonl file are those seen so far. A json file is SQuAD's, which is read as a
    whole, or has a row on each line. Raises ``InputError`` with the file and the line where it cannot be read.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: unsupported file type; tables end with one of {', '.join(SUFFIXES)}")
    suffix = files.format_of(path)
    if suffix == ".parquet":
        return _read_parquet(path, most)
    if suffix in (".csv", ".tsv"):
        # Text in a tsv file may hold a carriage return.
        return _from_rows(path, files.delimited_rows(path, files.Decoder(), cr=suffix == ".csv"), header, needed, most)
    if suffix in (".conll", ".txt"):
        return _read_conll(path, header, most)
    return (suffix == ".json" and _read_squad(path, most)) or _read_json(path, most)


def parts(rows: Iterable[T], most: Part | None, size: Callable[[T], int]) -> Iterator[list[T]]:
    """The rows in lists within ``most``, the only one empty where there are none; ``size`` is a row's in characters."""
    part: list[T] = []
    held, first = 0, True
    for row in rows:
        part.append(row)
        held += 0 if most is None else size(row)
        if most is not None and (len(part) >= most.rows or held >= most.characters):
            yield part
            part, held, first = [], 0, False
    if part or first:
        yield part


def _from_rows(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: Sequence[str], needed: Sequence[str], most: Part | None
) -> Iterator[Table]:
    start = next(rows, None)
    if start is None:
        raise InputError(f"{path}: empty file")
    names, found = start[1], []
    if header and not set(needed) <= set(names):
        names, found = list(header), [start]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns of the same name in the first line: {', '.join(map(repr, names))}")
    for part in parts(chain(found, rows), most, lambda row: sum(map(len, row[1]))):
        columns: dict[str, list[Any]] = {name: [] for name in names}
        lines, incomplete = [], {}
        for at, (number, row) in enumerate(part):
            if len(row) != len(names):
                incomplete[at] = f"{len(row)} fields where there are {len(names)} columns"
            lines.append(number)
            for column, cell in zip(columns.values(), [None] * len(names) if at in incomplete else row, strict=True):
                column.append(cell)
        yield Table(str(path), columns, lines, incomplete=incomplete)


def _read_json(path: Path, most: Part | None) -> Iterator[Table]:
    names: dict[str, None] = {}
    lines = files.read_lines(path, files.Decoder())
    for part in parts(files.json_objects(path, lines), most, lambda row: _characters(row[1])):
        names |= dict.fromkeys(name for _, row in part for name in row)
        yield _from_objects(path, part, names)


def _characters(cell: Any) -> int:
    """About how long a cell, or a row, of JSON is."""
    if isinstance(cell, dict):
        cell = [*cell.values()]
    return sum(map(_characters, cell)) if isinstance(cell, list) else len(cell) if isinstance(cell, str) else 8


def _from_objects(
    path: Path, numbered: Sequence[tuple[int, dict[str, Any]]], names: Iterable[str], counted: str = ""
) -> Table:
    columns = {name: [row.get(name) for _, row in numbered] for name in names}
    return Table(str(path), columns, [number for number, _ in numbered], counted=counted)


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


def _read_squad(path: Path, most: Part | None) -> Iterator[Table] | None:
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
    names = dict.fromkeys(name for row in rows for name in row)
    found = parts(enumerate(rows, 1), most, lambda row: _characters(row[1]))
    return (_from_objects(path, part, names, counted="question") for part in found)


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


def _read_conll(path: Path, header: Sequence[str], most: Part | None) -> Iterator[Table]:
    """Columns of lists, a list a sentence, and the line on which each sentence begins.

    A line holds a token and its annotations, separated by tabs, or by spaces where it has no tab; an empty line ends a
    sentence. Without ``header`` the first column is called ``tokens`` and the last one, if there are several,
    ``tags``. Lines that open a document (``-DOCSTART-``) are left out, and so are comments.
    """
    numbered = ((number, fields) for number, fields in _conll_fields(path) if fields[:1] != ["-DOCSTART-"])
    before, first = [], ["#"]
    for each in numbered:
        before.append(each)
        if each[1] and not _is_comment(each[1], 0):
            first = each[1]
            break
    names = list(header) or [TOKENS, *(f"column {i}" for i in range(2, len(first))), TAGS][: len(first)]
    sentences = _sentences(path, chain(before, numbered), len(names))
    for part in parts(sentences, most, lambda sentence: sum(map(len, sentence[1][0]))):
        if not part:
            raise InputError(f"{path}: empty file")
        columns = {name: [row[i] for _, row in part] for i, name in enumerate(names)}
        yield Table(str(path), columns, [number for number, _ in part])


def _sentences(
    path: Path, numbered: Iterable[tuple[int, list[str]]], columns: int
) -> Iterator[tuple[int, list[list[str]]]]:
    """The line on which each sentence begins, and its columns."""
    begins, row = 0, []
    for number, fields in numbered:
        if not fields:
            if row:
                yield begins, row
            row = []
        elif not row and _is_comment(fields, columns):
            continue
        elif len(fields) != columns:
            raise InputError(f"{path}:{number}: {len(fields)} fields, where {columns} columns are expected")
        else:
            if not row:
                begins, row = number, [[] for _ in range(columns)]
            for column, field in zip(row, fields, strict=True):
                column.append(field)
    if row:
        yield begins, row


def _conll_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line; no fields for a blank one."""
    for number, line in enumerate(files.read_lines(path, files.Decoder()), 1):
        fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        yield number, fields if any(field.strip() for field in fields) else []


def _is_comment(fields: Sequence[str], columns: int) -> bool:
    """Whether a line is a comment before a sentence: it begins with ``# ``, or with ``#`` and differs from a token."""
    return fields[0].startswith("# ") or (fields[0] == "#" and (len(fields) != columns or fields[2:3] == ["="]))


def _read_parquet(path: Path, most: Part | None) -> Iterator[Table]:
    import pyarrow as pa

    with files.open_parquet(path) as file:
        schema = file.schema_arrow
        features = _features(path, (schema.metadata or {}).get(b"huggingface", b"{}"))
        within = most and Part(-(-most.rows // files.BATCH), most.characters)  # batches, not rows
        for part in parts(files.parquet_batches(path, file), within, lambda batch: batch[1].nbytes):
            first, table = part[0][0] if part else 1, pa.Table.from_batches([batch for _, batch in part], schema)
            yield from_arrow(str(path), table, features, first)


def _features(path: Path, described: bytes) -> Mapping[str, Any]:
    """The description of the columns that a data set of the Hub stores in the file."""
    found = _parsed(described.decode(errors="replace"))
    for key in ("info", "features"):
        if not isinstance(found, dict):
            raise InputError(f"{path}: its description as a data set is damaged; fetch or write the file again")
        found = found.get(key) or {}
    return found if isinstance(found, dict) else {}


def from_arrow(where: str, table: pyarrow.Table, features: Mapping[str, Any], first: int = 1) -> Table:
    """A table of ``pyarrow``, whose first row is number ``first``; ``features`` describes its columns as a data set's
    ``features.to_dict()`` does.

    Raises ``InputError`` with the row for a cell that cannot be read, such as text that is not UTF-8.
    """
    if len({*table.column_names}) < table.num_columns:
        raise InputError(f"{where}: two columns of the same name: {', '.join(map(repr, table.column_names))}")
    columns = {name: _cells(where, name, table.column(name), first) for name in table.column_names}
    names = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            names[column] = _class_names(where, column, inner.get("names"))
    return Table(where, columns, range(first, first + table.num_rows), names, counted="row")


def _class_names(where: str, column: str, found: Any) -> list[str]:
    """The names of a column's classes in order: a list, or by number, as a data set's card writes them."""
    if isinstance(found, dict) and {*map(str, found)} == {*map(str, range(len(found)))}:
        found = [name for _, name in sorted(found.items(), key=lambda item: int(item[0]))]
    if not isinstance(found, list | None):
        raise InputError(f"{where}: the names of the classes of {column!r} are no list: {found!r:.200}; write it again")
    return [str(name) for name in found or ()]


def _cells(where: str, name: str, column: Iterable[Any], first: int) -> list[Any]:
    cells = []
    for number, cell in enumerate(column, first):
        try:
            cells.append(cell.as_py())
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python lacks
            raise InputError(f"{where}: row {number}: {name!r} cannot be read ({error}); write it again") from None
    return cells
