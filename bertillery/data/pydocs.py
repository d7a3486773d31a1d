"""The embedded corpus: English prose that every Python installation carries.

A document is a topic of the language reference that ships inside CPython (``pydoc_data``), or the docstrings of one
module of the standard library or an installed package. Files are parsed, never imported. The same installed packages
give the same documents in the same order.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

from bertillery.system.environment import num_cores
from bertillery.system.workers import pool

_SKIPPED_FOLDERS = {"test", "tests", "_vendor", "__pycache__", "site-packages", "dist-packages", "pydoc_data"}
_MIN_PARAGRAPH, _ENDS = 40, ".!?:"
_MIN_DOCUMENT = 200
"""Characters; shorter documents are left out."""
_VERSION = 1
"""Part of the fingerprint; raise it when a change below alters the text."""
DESCRIPTION = "the documentation that is installed"
"""Its name in messages."""
Definition = tuple[str, list[str]]
"""Dotted name within its module, empty for the module itself, and the prose of its docstring, a paragraph or more."""


@cache  # about ten megabytes, which the tokenizer and the corpus are both made from
def read_documents() -> tuple[list[list[str]], int]:
    """Documents of the embedded corpus, as lists of paragraphs, and the number of repeated paragraphs left out."""
    seen: set[str] = set()
    documents, repeated = [], 0
    modules = ([text for _, texts in definitions for text in texts] for _, definitions in read_modules())
    for paragraphs in chain(_read_topics(), modules):
        fresh = [text for text in dict.fromkeys(paragraphs) if text not in seen]
        seen.update(fresh)
        repeated += len(paragraphs) - len(fresh)
        if sum(map(len, fresh)) >= _MIN_DOCUMENT:
            documents.append(fresh)
    return documents, repeated


def read_modules() -> Iterator[tuple[str, list[Definition]]]:
    """The name and the definitions of every module, sorted. A name is ``<root>/<path below it>``; root 0 is the
    standard library."""
    listed = modules()
    # Syntax trees hold no cycles, and garbage collection takes a tenth of the time.
    with pool(num_cores(), gc.disable) as processes:
        found = processes.map(_read_module, [str(path) for _, path in listed], chunksize=64)
        yield from zip((name for name, _ in listed), found, strict=True)


def fingerprint() -> str:
    """Hash of everything the corpus is made from: the names and sizes of the modules, and the version of the rules."""
    digest = hashlib.sha256(f"{_VERSION}\n".encode())
    for name, path in modules():
        digest.update(f"{name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def modules() -> list[tuple[str, Path]]:
    """Every source file that is read, by its name, sorted."""
    roots = dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
    found = []
    for number, root in enumerate(roots):
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
            found += [
                (f"{number}/{Path(folder, name).relative_to(root).as_posix()}", Path(folder, name))
                for name in files
                if name.endswith(".py") and not name.startswith("test_") and name != "conftest.py"
            ]
    return sorted(found)


def _read_topics() -> Iterator[list[str]]:
    source = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
    if source.is_file():
        table = next(node.value for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.Assign))
        for _, text in sorted(ast.literal_eval(table).items()):
            yield prose(text)


def _read_module(path: str) -> list[Definition]:
    """The documented definitions of one source file in order; none if it cannot be parsed."""
    source = Path(path).read_bytes()
    # Parsing takes most of the time, and generated files repeat the docstrings of others.
    if b'"""' not in source or b"utomatically generated" in source[:1000] or b"utogenerated" in source[:1000]:
        return []
    found = [(name, prose(text)) for name, text in _docstrings(parsed(source))]
    return [(name, paragraphs) for name, paragraphs in found if paragraphs]


def parsed(source: bytes) -> ast.Module:
    """The syntax tree of a source file, which is empty for one that cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module([], [])


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str = ""
) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node, clean=False)
    if text:
        yield name, inspect.cleandoc(text)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}".lstrip("."))


_MARKUP = [
    (re.compile(r":[\w:+-]+:`(?:~[\w.]+\.|!)?([^`<]+?)\s*(?:<[^`>]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"\s?\[#?\w+\]_"), ""),
    (re.compile(r"\[?``?`?([^`]+)`{1,3}\]?_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*])\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?![\w*])"), r"\1"),
    (re.compile(r"\\([*_`|])"), r"\1"),
    (re.compile(r"::$"), ":"),
]
_BULLET = re.compile(r"([-*+•]|\(?[0-9a-z]{1,2}[.)])\s+(?=\S)")
_PARAMETER = re.compile(r":\w+[^:`]*:(\s+|$)|(?:`{0,2}\*{0,2}[\w.]+`{0,2})\s*(\(.{1,200}?\))?\s*(:|--| - )\s+")
_UNDERLINE = re.compile(r"([-=~^*#\"'+_.`])\1{2,}$")
_ADMONITION = re.compile(r"\.\. (note|warning|tip|important|caution|seealso|versionadded|versionchanged|deprecated)::")
_CODE = re.compile(r"[{}=<>|\\^~@$%\[\]_]|://|\(\)|->|\.\.\.|\w\.\w+\.\w|^(import|from \w+ import|return|def|class) ")


def prose(text: str) -> list[str]:
    """The paragraphs of running English in a documentation text, without markup, their lines joined."""
    paragraphs = []
    for lines in _runs(text.expandtabs().splitlines()):
        paragraph = " ".join(" ".join(lines).split())
        if len(paragraph) < _MIN_PARAGRAPH or paragraph[-1] not in _ENDS:
            continue
        for pattern, replacement in _MARKUP:
            paragraph = pattern.sub(replacement, paragraph)
        if _is_prose(paragraph):
            paragraphs.append(paragraph)
    return paragraphs


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < _MIN_PARAGRAPH or not paragraph[0].isupper() or _CODE.search(paragraph):
        return False
    words = [word.strip(".,;:!?()'\"") for word in paragraph.split()]
    plain = sum(word.isalpha() and (word[1:].islower() or len(word) == 1) for word in words)
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return len(words) >= 5 and plain >= 0.75 * len(words) and letters >= 0.8 * len(paragraph)


def _runs(lines: list[str]) -> Iterator[list[str]]:
    """The lines of each paragraph; literal blocks, doctests, tables and headings are left out."""
    run: list[str] = []
    indent, hanging = 0, False  # of the paragraph; hanging: deeper lines continue it, as in list items and parameters
    literal: int | None = None  # lines indented deeper than this belong to a literal block
    fenced = doctest = False
    for line in lines:
        content = line.strip()
        depth = len(line) - len(line.lstrip())
        if content.startswith("```"):
            fenced = not fenced
        if not content or fenced or content.startswith("```"):
            yield run
            run, doctest = [], False
            continue
        if literal is not None and depth <= literal:
            literal = None
        doctest = doctest or content.startswith(">>>")
        if doctest or literal is not None:
            yield run
            run = []
            continue
        if content.startswith((".. ", "|", "+-", "@")) or _UNDERLINE.match(content):
            # The body of a directive is literal, unless it is a note or the like.
            if content.startswith(".. "):
                yield run
                literal = None if _ADMONITION.match(content) else depth
            run = []
            continue
        item = _BULLET.match(content) or (_PARAMETER.match(content) if depth or content[0] == ":" else None)
        if item or depth < indent or (depth > indent and not hanging):
            yield run
            run = []
        if not run:
            indent, hanging = depth, item is not None
        run.append(content[item.end() :] if item else content)
        if content.endswith("::"):
            literal = depth
    yield run
