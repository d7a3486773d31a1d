"""Tables: csv, tsv, jsonl, parquet and data sets of the Hub, as columns that remember which line a row was on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import InputError
from engine.packed import DAMAGED, MAX_ROW, PACKED, json_objects, open_packed
from finetune.formats import sentences, squad_rows

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
    each line; conll and txt hold a word a line (:mod:`finetune.formats`). Raises ``InputError`` with file and line
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
