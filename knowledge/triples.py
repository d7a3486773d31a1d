"""Triples and entities as files write them: tables, JSON lines, the dumps of ConceptNet and Wikidata.

A file is streamed. What cannot be read is an ``InputError`` with the file, the line and what is allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from bertillery.config.section import InputError
from bertillery.data import files

Order = Literal["hrt", "htr", "rht"]
"""In which order a table without names has head, relation and tail."""
SUFFIXES = (*files.suffixes(".tsv", ".csv", ".txt", ".jsonl", ".nt"),)
_NAMES = ("head", "relation", "tail")
_WIKIDATA = re.compile(
    r"<http://www\.wikidata\.org/entity/([QP]\d+)> <http://www\.wikidata\.org/prop/direct/(P\d+)> "
    r"<http://www\.wikidata\.org/entity/([QP]\d+)> \."
)


class Triple(NamedTuple):
    """A fact, by the names of its parts, and where it stands."""

    head: str
    relation: str
    tail: str
    where: str


class Entity(NamedTuple):
    """An entity's name in triples, and what texts call it."""

    name: str
    label: str
    aliases: tuple[str, ...] = ()
    where: str = ""


def read_triples(path: Path, order: Order, language: str) -> Iterator[Triple]:
    """The triples of a file, by its suffix and its first row.

    ``.jsonl`` has objects with ``head``, ``relation`` and ``tail``; ``.nt`` is Wikidata's dump of direct statements,
    of which those between entities are read; a table whose rows begin with ``/a/`` is ConceptNet's dump, of which the
    concepts of ``language`` are read; any other table has three columns in ``order``.
    """
    form = files.format_of(path)
    if form == ".jsonl":
        yield from _objects(path)
    elif form == ".nt":
        yield from _statements(path)
    else:
        for number, row in _rows(path):
            where = f"{path}:{number}"
            if row[0].startswith("/a/"):
                triple = _assertion(row, where, language)
                if triple is not None:
                    yield triple
            elif len(row) != 3:
                raise InputError(
                    f"{where}: {len(row)} columns, and a triple has three, head, relation and tail ({_shown(row)}); "
                    "separate them by tabs, or give .jsonl with these keys"
                )
            else:
                parts = dict(zip(order, row, strict=True))
                yield _checked(Triple(parts["h"], parts["r"], parts["t"], where))


def read_entities(path: Path) -> Iterator[Entity]:
    """Entities from ``.jsonl`` with ``id``, and where there are any ``label`` and ``aliases``; or from a table of an
    id, a label, and aliases separated by ``|``."""
    if files.format_of(path) == ".jsonl":
        for number, row in files.json_objects(path, files.read_lines(path, files.Decoder())):
            where, name, aliases = f"{path}:{number}", row.get("id"), row.get("aliases") or []
            label = row.get("label") or name
            texts = isinstance(aliases, list) and all(isinstance(each, str) for each in [label, *aliases])
            if isinstance(name, bool) or not isinstance(name, str | int) or not (texts or isinstance(label, int)):
                raise InputError(
                    f"{where}: an entity is an object with id (a text or a number), label (a text) and aliases (a list "
                    f"of texts), not {json.dumps(row, ensure_ascii=False):.120}"
                )
            yield Entity(str(name), str(label), tuple(aliases), where)
        return
    for number, row in _rows(path):
        if len(row) > 3 or not row[0]:
            raise InputError(
                f"{path}:{number}: {len(row)} columns ({_shown(row)}); an entity has an id, a label and aliases that "
                "are separated by |"
            )
        name, label, aliases = [*row, "", ""][:3]
        yield Entity(name, label or name, tuple(filter(None, aliases.split("|"))), f"{path}:{number}")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    if files.format_of(path) == ".csv":
        yield from files.delimited_rows(path, files.Decoder())
        return
    for number, line in enumerate(files.read_lines(path, files.Decoder(), cr=False), 1):
        if text := line.rstrip("\r\n"):
            yield number, text.split("\t")


def _objects(path: Path) -> Iterator[Triple]:
    for number, row in files.json_objects(path, files.read_lines(path, files.Decoder())):
        where, found = f"{path}:{number}", [row.get(name) for name in _NAMES]
        if any(isinstance(each, bool) or not isinstance(each, str | int) for each in found):
            raise InputError(
                f"{where}: a triple is an object with head, relation and tail, each a text or a number, not "
                f"{json.dumps(row, ensure_ascii=False):.120}"
            )
        head, relation, tail = map(str, found)
        yield _checked(Triple(head, relation, tail, where))


def _statements(path: Path) -> Iterator[Triple]:
    for number, line in enumerate(files.read_lines(path, files.Decoder(), cr=False), 1):
        if found := _WIKIDATA.match(line):
            head, relation, tail = found.groups()
            yield Triple(head, relation, tail, f"{path}:{number}")


def _assertion(row: Sequence[str], where: str, language: str) -> Triple | None:
    """A row of ConceptNet's dump: the edge, its relation, start and end, and a JSON object."""
    if len(row) != 5:
        raise InputError(f"{where}: {len(row)} columns, and a row of ConceptNet's dump has five ({_shown(row)})")
    _, relation, *ends, _ = row
    parts = [end.split("/") for end in ends]
    if any(len(part) < 4 or part[2] != language for part in parts):  # "", "c", language, text
        return None
    head, tail = (part[3].replace("_", " ") for part in parts)
    return Triple(head, relation.rpartition("/")[2], tail, where)


def _checked(triple: Triple) -> Triple:
    if not all(triple[:3]):
        raise InputError(f"{triple.where}: an empty cell in a triple ({_shown(triple[:3])}); give all three, or no row")
    return triple


def _shown(row: Sequence[str]) -> str:
    return f"{' | '.join(row)!r:.120}"
