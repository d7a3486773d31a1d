"""How a graph is made from files with triples: numbered, sorted on disk, each triple once, a share of them held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import Share
from bertillery.data import pydocs
from bertillery.data.files import distinct
from bertillery.engine.rng import key, uniform
from bertillery.run.inputs import Fingerprint, describe_files
from bertillery.system.files import make_once, sha256
from knowledge import docs_graph
from knowledge.graph import FORMAT, Graph, Manifest, mapped
from knowledge.triples import SUFFIXES, Entity, Order, Triple, read_entities, read_triples

_CHUNK = 1 << 20
"""Triples that are in memory at a time."""


class GraphSection(Section):
    """Which graph."""

    path: list[str] = Field(default=["python-docs"], min_length=1)
    """Files with triples (.tsv, .csv, .jsonl, also compressed; ConceptNet's and Wikidata's dumps), or `python-docs`,
    the graph of the embedded documentation."""
    entities: Path | None = None
    """File with what texts call the entities: .jsonl of id, label, aliases, or a table of these columns. The triples
    may then name no others. Without it an entity is called by its name."""
    order: Order = "hrt"
    """Order of head, relation and tail in tables."""
    language: str = Field(default="en", pattern=r"^[a-z-]{2,12}$")
    """Concepts of ConceptNet's dump that are read."""
    valid: list[str] = Field(default=[])
    """Held-out triples; if there are none, a share of the others is held out."""
    test: list[str] = Field(default=[])
    """More held-out triples."""
    holdout: Share = 0.02
    """Share of the triples that is held out, among those whose ends have other triples."""


def within(section: GraphSection, root: Path) -> GraphSection:
    """The same graph, whose files are relative to ``root``."""
    folder = root.expanduser()

    def found(paths: list[str]) -> list[str]:
        return [path if path == "python-docs" else str(folder / Path(path).expanduser()) for path in paths]

    changes = {name: found(getattr(section, name)) for name in ("path", "valid", "test")}
    return section.model_copy(
        update={**changes, "entities": section.entities and folder / section.entities.expanduser()}
    )


def prepare_graph(section: GraphSection, cache: Path, *, name: str | None = None) -> Graph:
    """Open the graph of these settings; if ``cache`` lacks it, it is made first, by one process.

    Raises ``InputError`` for files that are not there or cannot be read.
    """
    folder = cache / f"graph-{name or graph_files(section).sha256}"

    def make(partial: Path) -> Path:
        made = partial / "graph"
        made.mkdir(exist_ok=True)
        _build(made, section)
        return made

    make_once(folder, make, doing="is preparing this graph")
    return Graph.open(folder)


def graph_files(section: GraphSection) -> Fingerprint:
    """The sources of a graph, by names, sizes and times of its files; the hash names the prepared graph."""
    parts: list[Any] = [FORMAT, section.model_dump(mode="json")]
    sources = [*_sources([*section.path, *section.valid, *section.test])]
    sources += [section.entities] if section.entities else []
    found = []
    for source in sources:
        if source is None:
            parts.append(["python-docs", pydocs.fingerprint(), docs_graph.VERSION])
        else:
            found.append(_existing(source).stat())
            parts.append([source.name, found[-1].st_size, found[-1].st_mtime_ns])
    described = [describe_files(len(found), sum(stat.st_size for stat in found))] if found else []
    described += [pydocs.DESCRIPTION] if None in sources else []
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return Fingerprint(digest, ", ".join(described), exact=False)


def _existing(path: Path) -> Path:
    if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
        what = "unsupported file type" if path.is_file() else "no such file"
        raise InputError(f"{path}: {what}; a graph is python-docs, or files that end with {', '.join(SUFFIXES)}")
    return path


def _sources(paths: Sequence[str]) -> Iterator[Path | None]:
    """Files, each once; None stands for the embedded documentation."""
    yield from [None] * ("python-docs" in paths)
    yield from distinct(Path(path).expanduser() for path in paths if path != "python-docs")


def _triples(paths: Sequence[str], section: GraphSection) -> Iterator[Triple]:
    for source in _sources(paths):
        if source is None:
            yield from docs_graph.read_graph()[1]
        else:
            yield from read_triples(_existing(source), section.order, section.language)


def _build(folder: Path, section: GraphSection) -> None:
    """Write all files of a graph; entities and relations are numbered in the order in which they are met."""
    known: dict[str, int] = {}
    relations: dict[str, int] = {}
    described = section.entities is not None or "python-docs" in section.path
    entities: Iterable[Entity] = read_entities(_existing(section.entities)) if section.entities else ()
    if section.entities is None and described:
        entities = docs_graph.read_graph()[0]
    labels: list[str] = []
    with (folder / "aliases.jsonl").open("w", encoding="utf-8") as stream:
        for entity in entities:
            if known.setdefault(entity.name, len(known)) < len(labels):
                raise InputError(f"{entity.where}: a second entity {entity.name!r}; give each one line")
            if entity.aliases:
                stream.write(json.dumps([len(labels), *entity.aliases], ensure_ascii=False) + "\n")
            labels.append(entity.label)

    def numbered(triples: Iterable[Triple]) -> Iterator[tuple[int, int, int]]:
        for triple in triples:
            for end in (triple.head, triple.tail):
                if section.entities is not None and end not in known:
                    raise InputError(
                        f"{triple.where}: the entity {end!r} is not in {section.entities}; add it there, or remove the "
                        "triple"
                    )
            ends = [known.setdefault(end, len(known)) for end in (triple.head, triple.tail)]
            yield ends[0], relations.setdefault(triple.relation, len(relations)), ends[1]

    raw = {part: folder / f"{part}.raw" for part in ("train", "valid", "test")}
    for part, paths in (("train", section.path), ("valid", section.valid), ("test", section.test)):
        _append(raw[part], numbered(_triples(paths, section)))
    if not relations:
        raise InputError(f"no triple in {', '.join(section.path)}; a graph has one at least")
    _write_texts(folder / "names", known)
    _write_texts(folder / "labels", [*labels, *list(known)[len(labels) :]])
    counts = _arrange(folder, raw, len(known), len(relations), 0.0 if section.valid else section.holdout)
    for file in raw.values():
        file.unlink()
    written = {file.name: (file.stat().st_size, sha256(file)) for file in sorted(folder.iterdir())}
    manifest = Manifest(format=FORMAT, entities=len(known), relations=[*relations], **counts, files=written)
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _append(file: Path, rows: Iterator[tuple[int, int, int]]) -> None:
    with file.open("wb") as stream:
        while len(part := np.fromiter(_some(rows), np.dtype((np.int32, 3)))):
            stream.write(part.tobytes())


def _some(rows: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    for _, row in zip(range(_CHUNK), rows, strict=False):
        yield row


def _arrange(folder: Path, raw: dict[str, Path], entities: int, relations: int, holdout: float) -> dict[str, int]:
    """Write triples, held-out ones and edges, sorted, each once; returns how many triples there are of each kind."""
    distinct_triples = folder / "all.raw"
    _sort(raw["train"], distinct_triples, entities)
    every = _rows(distinct_triples)
    held_out = _held_out(every, entities, holdout) if holdout else np.zeros(0, np.int64)
    kept = np.ones(len(every), bool)
    kept[held_out] = False
    with (folder / "triples.bin").open("wb") as stream, (folder / "both.raw").open("wb") as both:
        for at in range(0, len(every), _CHUNK):
            part = every[at : at + _CHUNK][kept[at : at + _CHUNK]]
            stream.write(part.tobytes())
            back = part[:, ::-1] + np.array([0, relations, 0], np.int32)
            both.write(part.tobytes() + np.ascontiguousarray(back).tobytes())
    every[held_out].tofile(folder / "valid.bin") if holdout else _sort(raw["valid"], folder / "valid.bin", entities)
    _sort(raw["test"], folder / "test.bin", entities)
    _sort(folder / "both.raw", folder / "edges.raw", entities)
    edges, degrees = _rows(folder / "edges.raw"), np.zeros(entities + 1, np.int64)
    with (folder / "edges.bin").open("wb") as stream:
        for at in range(0, len(edges), _CHUNK):
            part = edges[at : at + _CHUNK]
            degrees[1:] += np.bincount(part[:, 0], minlength=entities)
            stream.write(np.ascontiguousarray(part[:, 1:]).tobytes())
    np.cumsum(degrees).tofile(folder / "offsets.bin")
    counts = {part: len(_rows(folder / f"{part}.bin")) for part in ("triples", "valid", "test")}
    for name in ("all", "both", "edges"):
        (folder / f"{name}.raw").unlink()
    return counts


def _held_out(triples: np.ndarray, entities: int, share: float) -> np.ndarray:
    """Rows of a share of the triples, in the order of a hash; both ends of each keep another triple."""
    wanted, parts = int(share * len(triples)), []
    for at in range(0, len(triples), _CHUNK):
        number = np.arange(at, min(at + _CHUNK, len(triples)))
        parts.append(number[uniform(0, number) < 4 * share])  # more than are wanted: some ends have no other triple
    drawn = np.concatenate(parts)
    drawn = drawn[np.argsort(key(0, drawn), kind="stable")]
    left = np.bincount(triples[:, 0], minlength=entities) + np.bincount(triples[:, 2], minlength=entities)
    found: list[int] = []
    for row in drawn.tolist():
        head, _, tail = triples[row]
        if len(found) < wanted and left[head] > 1 and left[tail] > 1 and head != tail:
            left[head] -= 1
            left[tail] -= 1
            found.append(row)
    return np.array(sorted(found), np.int64)


def _sort(source: Path, target: Path, entities: int) -> None:
    """Sort triples by head, relation and tail, and drop repeated ones.

    Heads are counted first, then every triple is put where its head's begin: what is in memory is a chunk of the
    triples and a number for each entity.
    """
    rows, counts = _rows(source), np.zeros(entities, np.int64)
    for at in range(0, len(rows), _CHUNK):
        counts += np.bincount(rows[at : at + _CHUNK, 0], minlength=entities)
    ends = np.cumsum(counts)
    place = ends - counts
    grouped = target.with_suffix(".grouped")
    out = mapped(grouped, np.int32, rows.shape, "w+")
    for at in range(0, len(rows), _CHUNK):
        part = rows[at : at + _CHUNK]
        part = part[np.argsort(part[:, 0], kind="stable")]
        heads, first, number = np.unique(part[:, 0], return_index=True, return_counts=True)
        within = np.arange(len(part)) - np.repeat(first, number)
        out[place[part[:, 0]] + within] = part
        place[heads] += number
    with target.open("wb") as stream:
        for low, high in _blocks(ends):
            part = out[low:high]
            part = part[np.lexsort((part[:, 2], part[:, 1], part[:, 0]))]
            new = np.ones(len(part), bool)
            new[1:] = (part[1:] != part[:-1]).any(1)
            stream.write(part[new].tobytes())
    del out
    grouped.unlink(missing_ok=True)


def _blocks(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold all of the heads that they hold, of about a chunk each."""
    low, total = 0, int(ends[-1]) if len(ends) else 0
    while low < total:
        high = int(ends[min(np.searchsorted(ends, low + _CHUNK), len(ends) - 1)])
        yield low, high
        low = high


def _rows(file: Path) -> np.ndarray:
    return mapped(file, np.int32, (file.stat().st_size // 12, 3))


def _write_texts(stem: Path, texts: Iterable[str]) -> None:
    lengths = [0]
    with stem.with_suffix(".txt").open("wb") as stream:
        lengths += [stream.write(text.encode()) for text in texts]
    np.cumsum(np.array(lengths, np.int64)).tofile(stem.with_suffix(".bin"))
