"""Tables: csv, tsv, jsonl, parquet and data sets of the Hub, as columns that remember which line a row was on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import InputError
from engine.packed import DAMAGED, PACKED, json_objects, open_packed
from finetune.formats import sentences, squad_rows

if TYPE_CHECKING:
    import pyarrow

_FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".conll", ".txt")
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
        lines = _lines(path)
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


def _lines(path: Path) -> Iterator[str]:
    """Decoded lines with their ends; only a line feed ends one."""
    with open_packed(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{path}:{number}: not UTF-8; re-encode the file (iconv -t utf-8)") from None


def _tsv_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text:
            yield number, text.split("\t")


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(lines, strict=True)
    first = 1
    try:
        for row in reader:
            if row:
                yield first, row
            first = reader.line_num + 1
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
    try:
        rows = squad_rows(json.loads("".join(_lines(path))))
    except json.JSONDecodeError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return None if rows is None else _from_objects(path, rows, range(1, len(rows) + 1), counted="question")


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file: {error}") from error
    described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return from_arrow(str(path), table, described.get("info", {}).get("features", {}))


def from_arrow(where: str, table: pyarrow.Table, features: Mapping[str, Any]) -> Table:
    """A table of ``pyarrow``; ``features`` describes its columns as a data set's ``features.to_dict()`` does."""
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    names = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            names[column] = list(inner["names"])
    return Table(where, columns, range(1, table.num_rows + 1), names, counted="row")
