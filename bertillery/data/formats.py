"""The file formats: one file to the documents in it, with errors that name the line and the remedy."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bertillery.config.section import InputError
from bertillery.data.files import DAMAGED, MAX_ROW, PACKED, json_objects, open_packed

if TYPE_CHECKING:
    from bertillery.data.corpus import CorpusSection, ReadReport

MAX_PARAGRAPH = 1_000_000
"""Characters; a longer line is no paragraph, but a file without line breaks."""
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""The marks of UTF-16 and UTF-32; the fourth begins with the first of these."""
_FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*(kind + packed for kind in _FORMATS for packed in PACKED), ".parquet")
"""What a file's name may end with."""


def read_file(path: Path, section: CorpusSection, report: ReadReport) -> Iterator[list[str]]:
    """Yield the documents of one file, as lists of lines that may be blank."""
    kind = next(suffix for suffix in path.suffixes[::-1] if suffix.lower() in (*_FORMATS, ".parquet")).lower()
    if kind == ".parquet":
        yield from map(str.splitlines, _read_parquet(path, section, report))
        return
    try:
        with open_packed(path) as stream:
            if kind == ".txt":
                lines = _lines(path, stream, MAX_PARAGRAPH, section, report)
                yield from _split_documents(path, lines, section.documents)
            elif kind in (".csv", ".tsv"):
                lines = _lines(path, stream, MAX_ROW, section, report)
                yield from map(str.splitlines, _read_table(path, lines, section.text, kind))
            else:
                lines = _lines(path, stream, MAX_ROW, section, report)
                yield from map(str.splitlines, _read_json(path, lines, section, report))
    except DAMAGED as error:
        raise InputError(f"{path}: damaged or cut short: {error}; fetch or compress the file again") from error


def _lines(path: Path, stream: IO[bytes], limit: int, section: CorpusSection, report: ReadReport) -> Iterator[str]:
    """Decoded lines; one that is too long, or is not UTF-8, is an error with its number."""
    limit_bytes = 4 * limit if limit == MAX_PARAGRAPH else limit
    lines = _raw_lines(stream, limit_bytes)
    for number, raw in enumerate(lines, 1):
        if len(raw) > limit_bytes:
            raise InputError(f"{path}:{number}: {too_long(len(raw), 'line')}")
        if (number == 1 and raw.startswith(_WIDE)) or b"\0" in raw:
            raise InputError(
                f"{path}:{number}: NUL bytes, or the mark of UTF-16 or UTF-32; re-encode the file "
                f"(iconv -f UTF-16 -t UTF-8; without a mark from UTF-16LE or UTF-16BE), or leave it out"
            )
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            if section.undecodable == "fail":
                bad = 1 + sum(not _is_utf8(rest) for rest in lines)
                raise InputError(
                    f"{path}: {bad} line{'s' * (bad > 1)} not UTF-8, the first is line {number}; "
                    "re-encode the file (iconv -t utf-8) or set data.undecodable=replace"
                ) from None
            report.undecodable += 1
            line = raw.decode("utf-8", errors="replace")
        if len(line) > limit:
            raise InputError(f"{path}:{number}: {too_long(len(line))}")
        yield line


def _raw_lines(stream: IO[bytes], limit: int) -> Iterator[bytes]:
    """Lines that end with LF, CR LF or CR; of one longer than ``limit`` no more is gathered than shows that it is."""
    rest = b""
    while piece := stream.readline(limit + 1):
        lines = (rest + piece).splitlines(keepends=True)
        rest = b"" if piece.endswith(b"\n") else lines.pop()
        yield from lines
        if len(rest) > limit:
            yield rest
            rest = b""
    if rest:
        yield rest


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def too_long(length: int, what: str = "paragraph") -> str:
    """Message for a paragraph or line over the limit."""
    return (
        f"a {what} of {length:,} or more characters; at most {MAX_PARAGRAPH:,} are allowed in a paragraph: "
        "put one paragraph on a line"
    )


def _split_documents(path: Path, lines: Iterable[str], documents: str) -> Iterator[list[str]]:
    paragraphs: list[str] = []
    size = 0
    for number, line in enumerate(lines, 1):
        if not line.isspace():
            paragraphs.append(line)
            size += len(line)
            if size > MAX_ROW:
                raise InputError(
                    f"{path}:{number}: a document of more than {MAX_ROW:,} characters; separate documents by "
                    "blank lines, or use a .jsonl file with one document a line"
                )
        elif documents == "blank_line":
            yield paragraphs
            paragraphs, size = [], 0
    yield paragraphs


def _column(where: str, column: str, columns: Iterable[str]) -> str:
    known = ", ".join(map(repr, columns)) or "none"
    return f"{where}: no column {column!r}; there are: {known}; set data.text to one of them"


def _read_json(path: Path, lines: Iterable[str], section: CorpusSection, report: ReadReport) -> Iterator[str]:
    for number, row in json_objects(path, lines):
        text = cell(f"{path}:{number}", row, section.text)
        try:
            text.encode()
        except UnicodeEncodeError:
            # "\ud800" is valid JSON, but half a character: nothing can encode it.
            if section.undecodable == "fail":
                raise InputError(
                    f"{path}:{number}: half a surrogate pair in the text; repair it or set data.undecodable=replace"
                ) from None
            report.undecodable += 1
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield text


def cell(where: str, row: dict[str, Any], column: str) -> str:
    """The text of a row, empty when it is null; ``InputError`` without such a column or when it holds no text."""
    if column not in row:
        raise InputError(_column(where, column, row))
    text = row[column]
    if not isinstance(text, str | None):
        raise InputError(f"{where}: {column!r} holds a {type(text).__name__}, not text; set data.text to a text column")
    return text or ""


def _read_table(path: Path, lines: Iterable[str], column: str, kind: str) -> Iterator[str]:
    """Quoting is csv's; in a .tsv file a quotation mark is an ordinary character."""
    csv.field_size_limit(MAX_ROW)
    if kind == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if column not in header:
            raise InputError(_column(f"{path}", column, header))
        index = header.index(column)
        for row in reader:
            if row and len(row) != len(header):
                raise InputError(f"{path}:{reader.line_num}: {len(row)} fields where the header has {len(header)}")
            yield row[index] if row else ""
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}; is a quotation mark left open?") from None


def _read_parquet(path: Path, section: CorpusSection, report: ReadReport) -> Iterator[str]:
    """Nothing but a reader of bytes tells which row is not UTF-8: texts are read as such."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column, number, texts = section.text, 0, (pa.string(), pa.large_string(), pa.string_view())
    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise InputError(_column(f"{path}", column, file.schema_arrow.names))
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                values = batch.column(0)
                if pa.types.is_dictionary(values.type):
                    values = values.dictionary_decode()
                known = values.null_count < len(values)
                if known and values.type not in texts:
                    kind = f"{path}: {column!r} holds values of type {values.type}, not text"
                    raise InputError(f"{kind}; set data.text to a text column")
                for value in values.cast(pa.large_binary()).to_pylist() if known else [None] * len(values):
                    number += 1
                    yield "" if value is None else _decoded(f"{path}: row {number}", value, section, report)
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file: {error}") from error


def _decoded(where: str, raw: bytes, section: CorpusSection, report: ReadReport) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        if section.undecodable == "fail":
            raise InputError(f"{where}: not UTF-8; write the file anew, or set data.undecodable=replace") from None
    report.undecodable += 1
    return raw.decode(errors="replace")
