"""Text to documents: files of every supported format become one stream of documents, read in bounded memory.

A document is a list of paragraphs, stripped and never empty; the text is not changed otherwise.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bertillery.config.section import InputError, Section
from bertillery.config.types import Factor, Share
from bertillery.data import files, pydocs
from bertillery.system.invocation import by_make

MAX_PARAGRAPH = 1_000_000
"""Characters; a longer line is no paragraph, but a file without line breaks."""
SUFFIXES = files.suffixes(".txt", ".jsonl", ".json", ".csv", ".tsv")
"""Suffixes of text files."""
Paths = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""A list of strings; one string alone stands for a list of one."""
LANGUAGES = (
    "am", "ar", "bg", "bn", "ca", "da", "de", "el", "en", "es", "fi", "fr", "gu", "hi", "hy", "it", "ja", "kk", "kn",
    "ml", "mr", "my", "nl", "pa", "pl", "pt", "ru", "sk", "ta", "te", "uk",
)  # fmt: skip
"""Languages for which sentencex has rules. It treats any other string as English."""


def check_language(code: str) -> str:
    """The code; ``ValueError`` that lists the languages with rules if this one has none."""
    if code in LANGUAGES:
        return code
    base = re.split("[-_]", code.lower())[0]
    near = f"did you mean {base!r}? " if base in LANGUAGES else ""
    raise ValueError(
        f"{near}There are rules for {', '.join(LANGUAGES)}; for another language give the most similar one; those for "
        "en split at the full stops of every script"
    )


class CorpusSection(Section):
    """Where the text comes from."""

    path: Paths = Field(default=["python-docs"], min_length=1)
    """Files, folders, globs, `hub:owner/name` or `hub:owner/name/config`, or `python-docs`, the embedded corpus."""
    weights: list[Factor] = Field(default=[])
    """A weight for each entry of `path`, which is its share of the tokens that a causal language model is trained on,
    whatever its size. Without weights, every document is read once an epoch."""
    valid: Paths = Field(default=[])
    """Held-out text, given as `path` is; when empty, a share of the documents is held out."""
    holdout: Share = 0.02
    """Share of the documents held out, chosen by their content."""
    documents: Literal["blank_line", "file"] = "blank_line"
    """What ends a document in a .txt file: a blank line, or the end of the file. A line is a paragraph."""
    units: Literal["sentences", "documents"] = "sentences"
    """Whether documents are split into sentences, whose white space is normalised, or kept as they are written, line
    feeds included, which causal language models need."""
    text: str = "text"
    """Column that holds the text in jsonl, csv, tsv and parquet; a row is a document, a line in it a paragraph."""
    undecodable: Literal["fail", "replace"] = "fail"
    """What to do with bytes that are not UTF-8."""
    language: Annotated[str, AfterValidator(check_language)] = "en"
    """Code of the language whose rules split sentences; the message for an unknown code lists those with rules. For
    another language give the most similar one; the rules for en split at the full stops of every script."""

    @model_validator(mode="after")
    def _weights_fit(self) -> CorpusSection:
        if self.weights and len(self.weights) != len(self.path):
            raise ValueError(
                f"weights: {len(self.weights)} of them, and path has {len(self.path)} entries; give one for each entry"
            )
        if self.weights and self.units == "sentences":
            raise ValueError(
                "weights are for objectives that read whole documents (data.units=documents), such as causal_lm; "
                "leave them out"
            )
        return self

    def lines(self, text: str) -> list[str]:
        """The paragraphs of a row's text, or the text as it is written."""
        return text.splitlines() if self.units == "sentences" else [text]


@dataclass
class ReadReport:
    """What has been read so far."""

    files: int = 0
    documents: int = 0
    paragraphs: int = 0
    characters: int = 0
    repeated: int = 0
    """Paragraphs that the embedded corpus left out because it had them already."""
    undecodable: int = 0
    """Lines (or rows) in which bytes were replaced."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Number of files in folders and globs that are not text files, by suffix."""


def read_documents(section: CorpusSection, paths: Iterable[str], report: ReadReport) -> Iterator[list[str]]:
    """Stream the documents of ``paths`` (entries of ``section.path`` or ``.valid``) and count them in ``report``.

    Raises ``InputError`` that names the file, the line and the remedy where the input cannot be used.
    """
    for source in resolve(paths, report.passed_over):
        report.files += 1
        if source == "python-docs":
            documents, repeated = pydocs.read_documents()
            report.repeated += repeated
        elif isinstance(source, str):
            documents = map(section.lines, _hub_texts(source, section.text))
        else:
            documents = read_file(source, section, report)
        for document in documents:
            if section.units == "documents":
                whole = "\n".join(line.removesuffix("\n").removesuffix("\r") for line in document).strip("\n")
                paragraphs = [whole] if whole and not whole.isspace() else []
            else:
                paragraphs = [text for text in map(str.strip, document) if text]
            if paragraphs:
                if section.units == "sentences":
                    _check_length(f"{source}: document {report.documents + 1}", max(paragraphs, key=len))
                report.documents += 1
                report.paragraphs += len(paragraphs)
                report.characters += sum(map(len, paragraphs))
                yield paragraphs


def resolve(paths: Iterable[str], passed_over: dict[str, int] | None = None) -> list[str | Path]:
    """Expand folders and globs, sorted, each file once; `hub:` entries and `python-docs` stay strings.

    Linked folders are followed, and each real folder is read once. Other files of a folder or glob are counted in
    ``passed_over`` by their suffix.
    """
    sources: dict[str | Path, None] = {}
    counts = {} if passed_over is None else passed_over
    for entry in paths:
        path = Path(entry).expanduser()
        if entry == "python-docs" or entry.startswith("hub:"):
            sources[entry] = None
        elif path.is_file():
            if not path.name.lower().endswith(SUFFIXES):
                raise InputError(f"{entry}: unsupported file type; text files end with one of {', '.join(SUFFIXES)}")
            sources[path] = None
        else:
            if path.is_dir():
                found = {*files.expand(path, ["**", "*"], hidden=True)}
            elif glob.has_magic(entry):
                found = {*files.matching(path)}
            else:
                raise InputError(
                    f"{entry}: no such file or folder; give a file, folder, glob, hub:owner/name or python-docs"
                    f"{_split_path([*paths])}"
                )
            usable = sorted(file for file in found if file.name.lower().endswith(SUFFIXES) and file.is_file())
            if not usable:
                raise InputError(f"{entry}: no text found in {len(found)} files; looked for {', '.join(SUFFIXES)}")
            sources.update(dict.fromkeys(usable))
            for file in sorted(found.difference(usable)):
                suffix = (file.suffix.lower() or "without a suffix") if file.exists() else "broken links"
                counts[suffix] = counts.get(suffix, 0) + 1
    once = {*files.distinct(source for source in sources if isinstance(source, Path))}
    return [source for source in sources if isinstance(source, str) or source in once]


def _split_path(paths: list[str]) -> str:
    """The remedy where ``make`` split a path at its spaces; empty if no such path exists."""
    for start, end in combinations(range(len(paths) + 1), 2):
        whole = " ".join(paths[start:end])
        if end - start > 1 and glob.glob(str(Path(whole).expanduser()), recursive=True):
            quoted = f"ARGS=\"data.path='{whole}'\"" if by_make() else f"'data.path={whole}'"
            return f"; {whole!r} exists: quote a path with spaces, {quoted}"
    return ""


def read_file(path: Path, section: CorpusSection, report: ReadReport) -> Iterator[list[str]]:
    """Yield the documents of one file, as lists of lines that may be blank."""
    decoder = files.Decoder(section.undecodable == "replace", " or set data.undecodable=replace", nul=False)
    suffix = files.format_of(path)
    if suffix == ".txt":
        yield from _split_documents(path, section.documents, decoder)
    else:
        read = {".parquet": _parquet_texts, ".csv": _delimited_texts, ".tsv": _delimited_texts}.get(suffix, _json_texts)
        yield from map(section.lines, read(path, section.text, decoder))
    report.undecodable += decoder.replaced


def _split_documents(path: Path, documents: str, decoder: files.Decoder) -> Iterator[list[str]]:
    paragraphs: list[str] = []
    size = 0
    for number, line in enumerate(files.read_lines(path, decoder, what="paragraph"), 1):
        _check_length(f"{path}:{number}", line)
        if documents == "file" or not line.isspace():
            paragraphs.append(line)
            size += len(line)
            if size > files.MAX_ROW:
                raise InputError(
                    f"{path}:{number}: a document of more than {files.MAX_ROW:,} characters; separate documents by "
                    "blank lines, or use a .jsonl file with one document a line"
                )
        else:
            yield paragraphs
            paragraphs, size = [], 0
    yield paragraphs


def _check_length(where: str, paragraph: str) -> None:
    if len(paragraph) > MAX_PARAGRAPH:
        raise InputError(
            f"{where}: a paragraph of {len(paragraph):,} characters; at most {MAX_PARAGRAPH:,} are allowed in a "
            "paragraph: put one paragraph on a line"
        )


def _json_texts(path: Path, column: str, decoder: files.Decoder) -> Iterator[str]:
    for number, row in files.json_objects(path, files.read_lines(path, decoder)):
        text = _cell(f"{path}:{number}", row, column)
        try:
            text.encode()
        except UnicodeEncodeError:
            # "\ud800" is valid JSON, but half a character: nothing can encode it.
            if not decoder.replace:
                raise InputError(
                    f"{path}:{number}: half a surrogate pair in the text; repair it{decoder.alternative}"
                ) from None
            decoder.replaced += 1
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield text


def _cell(where: str, row: dict[str, Any], column: str) -> str:
    """The text of a row, empty when it is null."""
    _check_column(where, column, row)
    text = row[column]
    if not isinstance(text, str | None):
        raise InputError(f"{where}: {column!r} holds a {type(text).__name__}, not text; set data.text to a text column")
    return text or ""


def _check_column(where: str, column: str, columns: Iterable[str]) -> None:
    if column not in columns:
        known = ", ".join(map(repr, columns)) or "none"
        raise InputError(f"{where}: no column {column!r}; there are: {known}; set data.text to one of them")


def _delimited_texts(path: Path, column: str, decoder: files.Decoder) -> Iterator[str]:
    rows = files.delimited_rows(path, decoder)
    _, header = next(rows, (1, []))
    _check_column(str(path), column, header)
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: {len(row)} fields where the header has {len(header)}")
        yield row[header.index(column)]


def _parquet_texts(path: Path, column: str, decoder: files.Decoder) -> Iterator[str]:
    """Texts are read as bytes: pyarrow does not tell which row is not UTF-8."""
    import pyarrow as pa

    with files.open_parquet(path) as file:
        _check_column(str(path), column, file.schema_arrow.names)
        for first, batch in files.parquet_batches(path, file, [column]):
            values = batch.column(0)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            if values.null_count == len(values):
                continue
            if values.type not in (pa.string(), pa.large_string(), pa.string_view()):
                raise InputError(
                    f"{path}: {column!r} holds values of type {values.type}, not text; set data.text to a text column"
                )
            for number, value in enumerate(values.cast(pa.large_binary()).to_pylist(), first):
                yield "" if value is None else decoder.decode(f"{path}: row {number}", value)


def _hub_texts(source: str, column: str) -> Iterator[str]:
    import datasets

    owner, _, rest = source.removeprefix("hub:").partition("/")
    name, _, config = rest.partition("/")
    if not owner or not name:
        raise InputError(f"{source}: a data set of the Hub is given as hub:owner/name or hub:owner/name/config")
    for row in datasets.load_dataset(f"{owner}/{name}", config or None, split="train", streaming=True):
        yield _cell(source, cast(dict[str, Any], row), column)
