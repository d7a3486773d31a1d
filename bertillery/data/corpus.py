"""Text to documents: files of every supported kind become one stream of documents, read in bounded memory.

A document is a list of paragraphs, stripped and never empty. Apart from that the text is left as it is.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import Share
from bertillery.data import pydocs
from bertillery.data.files import distinct, expand, matching
from bertillery.data.formats import MAX_PARAGRAPH, SUFFIXES, cell, read_file, too_long

Paths = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""A list of strings; one string alone stands for a list of one."""


LANGUAGES = (
    "am", "ar", "bg", "bn", "ca", "da", "de", "el", "en", "es", "fi", "fr", "gu", "hi", "hy", "it", "ja", "kk", "kn",
    "ml", "mr", "my", "nl", "pa", "pl", "pt", "ru", "sk", "ta", "te", "uk",
)  # fmt: skip
"""Those that sentencex has rules for. It takes any other string, too, for English."""


def check_language(code: str) -> str:
    """The code as it is; ``ValueError`` that lists the codes where there are no rules for it."""
    if code in LANGUAGES:
        return code
    base = re.split("[-_]", code.lower())[0]
    near = f"did you mean {base!r}? " * (base in LANGUAGES)
    raise ValueError(
        f"{near}There are rules for {', '.join(LANGUAGES)}; for another language give the one nearest to it; en's "
        "split at the full stops of every script"
    )


class CorpusSection(Section):
    """Where the text comes from."""

    path: Paths = Field(default=["python-docs"], min_length=1)
    """Files, folders, globs, `hub:owner/name` or `hub:owner/name/config`, or `python-docs`, the embedded corpus."""
    valid: Paths = Field(default=[])
    """Held-out text, given as `path` is; when empty, a share of the documents is held out."""
    holdout: Share = 0.02
    """Share of the documents held out, chosen by their content."""
    documents: Literal["blank_line", "file"] = "blank_line"
    """What ends a document in a .txt file: a blank line, or the end of the file. A line is a paragraph."""
    text: str = "text"
    """Column that holds the text in jsonl, csv, tsv and parquet; a row is a document, a line in it a paragraph."""
    undecodable: Literal["fail", "replace"] = "fail"
    """What to do with bytes that are not UTF-8."""
    language: Annotated[str, AfterValidator(check_language)] = "en"
    """Whose rules split sentences: am, ar, bg, bn, ca, da, de, el, en, es, fi, fr, gu, hi, hy, it, ja, kk, kn, ml, mr,
    my, nl, pa, pl, pt, ru, sk, ta, te or uk. For another language the one nearest to it; en's split at the full stops
    of every script."""


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
    """How many files in folders and globs are no text files, by suffix."""


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
            documents = map(str.splitlines, _read_hub(source, section.text))
        else:
            documents = read_file(source, section, report)
        for document in documents:
            paragraphs = [text for text in map(str.strip, document) if text]
            if paragraphs:
                longest = max(map(len, paragraphs))
                if longest > MAX_PARAGRAPH:
                    raise InputError(f"{source}: document {report.documents + 1}: {too_long(longest)}")
                report.documents += 1
                report.paragraphs += len(paragraphs)
                report.characters += sum(map(len, paragraphs))
                yield paragraphs


def resolve(paths: Iterable[str], passed_over: dict[str, int] | None = None) -> list[str | Path]:
    """Expand folders and globs, sorted, each file once; `hub:` entries and `python-docs` stay strings.

    Linked folders are followed, each real folder once, whatever entries lead to it. What a folder or glob holds and no
    text file is, is counted in ``passed_over`` by its suffix.
    """
    sources: dict[str | Path, None] = {}
    for entry in paths:
        path = Path(entry).expanduser()
        if entry == "python-docs" or entry.startswith("hub:"):
            sources[entry] = None
        elif path.is_file():
            if not path.name.lower().endswith(SUFFIXES):
                raise InputError(f"{entry}: unknown kind of file; a text file ends with one of {', '.join(SUFFIXES)}")
            sources[path] = None
        else:
            if path.is_dir():
                found = {*expand(path, ["**", "*"], hidden=True)}
            elif glob.has_magic(entry):
                found = {*matching(path)}
            else:
                raise InputError(
                    f"{entry}: no such file or folder; give a file, folder, glob, hub:owner/name or python-docs"
                    f"{_parted([*paths])}"
                )
            usable = sorted(file for file in found if file.name.lower().endswith(SUFFIXES) and file.is_file())
            if not usable:
                raise InputError(f"{entry}: no text found in {len(found)} files; looked for {', '.join(SUFFIXES)}")
            sources.update(dict.fromkeys(usable))
            if passed_over is not None:
                _count_kinds(found.difference(usable), passed_over)
    once = {*distinct(source for source in sources if isinstance(source, Path))}
    return [source for source in sources if isinstance(source, str) or source in once]


def _count_kinds(files: Iterable[Path], counts: dict[str, int]) -> None:
    for file in sorted(files):
        kind = (file.suffix.lower() or "without a suffix") if file.exists() else "broken links"
        counts[kind] = counts.get(kind, 0) + 1


def _parted(paths: list[str]) -> str:
    """What to give instead where a path was parted at its spaces, as make does; nothing where none was."""
    for start, end in combinations(range(len(paths) + 1), 2):
        whole = " ".join(paths[start:end])
        if end - start > 1 and glob.glob(str(Path(whole).expanduser()), recursive=True):
            return f"; {whole!r} is there: to make, a path with spaces is given as ARGS=\"data.path='{whole}'\""
    return ""


def _read_hub(source: str, column: str) -> Iterator[str]:
    import datasets

    owner, _, rest = source.removeprefix("hub:").partition("/")
    name, _, config = rest.partition("/")
    if not owner or not name:
        raise InputError(f"{source}: a data set of the Hub is given as hub:owner/name or hub:owner/name/config")
    for row in datasets.load_dataset(f"{owner}/{name}", config or None, split="train", streaming=True):
        yield cell(source, cast(dict[str, Any], row), column)
