"""What tasks come in that are no tables: SQuAD's json, and columns of words as in the CoNLL shared tasks.

Tables: csv, tsv, jsonl, parquet and data sets of the Hub, as columns that remember which line a row was on.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertillery.config.section import InputError
from bertillery.data.files import DAMAGED, MAX_ROW, PACKED, json_objects, open_packed

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


if TYPE_CHECKING:
    import pyarrow

_FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".conll", ".txt")
MAX_DOCUMENT = 256_000_000
"""Characters of a json file that is one document; SQuAD 2.0 has 42 million."""
SUFFIXES = (*(kind + packed for kind in _FORMATS for packed in PACKED), ".parquet")
"""What a table's name may end with."""


@dataclass(frozen=True)
class Table:
    """Rows, by column."""

    where: str
    """File, or data set of the Hub."""
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    """Line of each row in the file, or its number from 1 (:attr:`counted`)."""
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """What the numbers of a column stand for, where the table says so."""
    incomplete: dict[int, str] = field(default_factory=dict)
    """Rows whose fields are not as many as the columns, and what is wrong with them; their cells are all None."""
    counted: str = ""
    """What ``lines`` numbers where it is no lines: rows, or questions."""

    def place(self, row: int) -> str:
        """Where a row is, counted from 0: its line in the file, or its number."""
        return f"{self.where}:{f' {self.counted} ' if self.counted else ''}{self.lines[row]}"


def read_table(path: Path, *, header: Sequence[str], needed: Sequence[str]) -> Table:
    """Read one file.

    A csv or tsv file has ``header`` for its columns, if that is given, unless its first line holds all of ``needed``.
    Quoting is csv's; in a tsv file a quotation mark is an ordinary character. A json file is SQuAD's, or has a row on
    each line; conll and txt hold a word a line (:mod:`bertillery.data.tables`). Raises ``InputError``
    with file and line
    where the file cannot be read.
    """
    kind = next((suffix for suffix in path.suffixes[::-1] if suffix.lower() in (*_FORMATS, ".parquet")), "").lower()
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: unknown kind of file; a table ends with one of {', '.join(SUFFIXES)}")
    if kind == ".parquet":
        return _read_parquet(path)
    try:
        lines = _lines(path, MAX_ROW)
        if kind in (".jsonl", ".json"):
            return (kind == ".json" and _read_squad(path)) or _read_json(path, lines)
        if kind in (".conll", ".txt"):
            columns, begins = sentences(path, lines, header)
            if not begins:
                raise InputError(f"{path}: empty file")
            return Table(str(path), columns, begins)
        rows = _csv_rows(path, lines) if kind == ".csv" else _tsv_rows(lines)
        return _from_rows(path, rows, header, needed)
    except DAMAGED as error:
        raise InputError(f"{path}: damaged or cut short: {error}; fetch or compress the file again") from error


def _lines(path: Path, limit: int) -> Iterator[str]:
    """Decoded lines with their ends, each of at most so many bytes; only a line feed ends one."""
    number = 0
    with open_packed(path) as stream:
        while raw := stream.readline(limit + 1):
            number += 1
            if len(raw) > limit:
                raise _too_large(f"{path}:{number}", limit)
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{path}:{number}: not UTF-8; re-encode the file (iconv -t utf-8)") from None


def _too_large(where: str, limit: int, what: str = "row") -> InputError:
    return InputError(
        f"{where}: a {what} of more than {limit:,} bytes; a task's rows are shorter: check the file's line breaks, and "
        "write large documents as .jsonl, an example to a line"
    )


def _tsv_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text:
            yield number, text.split("\t")


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_ROW)
    first, size = 1, 0

    def counted() -> Iterator[str]:
        nonlocal size
        for line in lines:
            size += len(line)
            if size > MAX_ROW:
                raise _too_large(f"{path}:{first}", MAX_ROW)
            yield line

    reader = csv.reader(counted(), strict=True)
    try:
        for row in reader:
            if row:
                yield first, row
            first, size = reader.line_num + 1, 0
    except csv.Error as error:
        raise InputError(f"{path}:{first}: {error}; is a quotation mark left open?") from None


def _from_rows(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: Sequence[str], needed: Sequence[str]
) -> Table:
    start = next(rows, None)
    if start is None:
        raise InputError(f"{path}: empty file")
    names, bodies = start[1], []
    if header and not set(needed) <= set(names):
        names, bodies = list(header), [start]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns of the same name in the first line: {', '.join(map(repr, names))}")
    bodies += rows
    wrong = f"fields where there are {len(names)} columns"
    incomplete = {at: f"{len(row)} {wrong}" for at, (_, row) in enumerate(bodies) if len(row) != len(names)}
    blank = [None] * len(names)
    cells = list(zip(*(blank if at in incomplete else row for at, (_, row) in enumerate(bodies)), strict=True))
    columns = {name: list(column) for name, column in zip(names, cells or [()] * len(names), strict=True)}
    return Table(str(path), columns, [number for number, _ in bodies], incomplete=incomplete)


def _read_json(path: Path, lines: Iterable[str]) -> Table:
    found = list(json_objects(path, lines))
    return _from_objects(path, [row for _, row in found], [number for number, _ in found])


def _from_objects(path: Path, rows: Sequence[dict[str, Any]], numbers: Sequence[int], counted: str = "") -> Table:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(str(path), columns, numbers, counted=counted)


def _read_squad(path: Path) -> Table | None:
    """The questions of a file in SQuAD's form; None for another json."""
    document = _document(path)
    try:
        rows = squad_rows(document)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return None if rows is None else _from_objects(path, rows, range(1, len(rows) + 1), counted="question")


def _document(path: Path) -> Any:
    """What a json file holds as a whole; None where it has a row on each line, or is no JSON."""
    first = _parsed(next((line for line in _lines(path, MAX_DOCUMENT) if not line.isspace()), ""))
    if isinstance(first, dict) and not isinstance(first.get("data"), list):
        return None
    lines, size = [], 0
    for line in _lines(path, MAX_DOCUMENT):
        lines.append(line)
        size += len(line)
        if size > MAX_DOCUMENT:
            raise _too_large(str(path), MAX_DOCUMENT, "document")
    return _parsed("".join(lines))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            if any(group.total_byte_size > MAX_ROW * max(1, group.num_rows) for group in groups):
                raise _too_large(str(path), MAX_ROW)
            table = pa.Table.from_batches(_small_rows(path, file.iter_batches(batch_size=64)), file.schema_arrow)
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file: {error}; fetch or write the file again") from error
    return from_arrow(str(path), table, _features(path, (table.schema.metadata or {}).get(b"huggingface", b"{}")))


def _features(path: Path, described: bytes) -> Mapping[str, Any]:
    """What a file says of its columns as a data set of the Hub."""
    found = _parsed(described.decode(errors="replace"))
    for key in ("info", "features"):
        if not isinstance(found, dict):
            raise InputError(f"{path}: its description as a data set is damaged; fetch or write the file again")
        found = found.get(key) or {}
    return found if isinstance(found, dict) else {}


def _small_rows(path: Path, batches: Iterable[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
    """The batches; ``InputError`` with its number for a row that is too large."""
    row = 0
    for batch in batches:
        if batch.nbytes > MAX_ROW:
            for number in range(batch.num_rows):
                if batch.slice(number, 1).nbytes > MAX_ROW:
                    raise _too_large(f"{path}: row {row + number + 1}", MAX_ROW)
        row += batch.num_rows
        yield batch


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
    """The names of a column's classes by their numbers: a list, or, as a data set's card writes them, by number."""
    if isinstance(found, dict) and {*map(str, found)} == {*map(str, range(len(found)))}:
        found = [name for _, name in sorted(found.items(), key=lambda item: int(item[0]))]
    if not isinstance(found, list | None):
        raise InputError(f"{where}: the names of the classes of {column!r} are no list: {found!r:.200}; write it again")
    return [str(name) for name in found or ()]


def _cells(where: str, name: str, column: pyarrow.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a date that Python has not
        for number, cell in enumerate(column, 1):
            try:
                cell.as_py()
            except (ValueError, OverflowError) as error:
                raise InputError(f"{where}: row {number}: {name!r} cannot be read ({error}); write it again") from None
        raise
