"""A knowledge graph on disk: triples as sorted arrays, which are mapped into memory, never loaded whole.

Legend: E entities, R relations, M triples. Each triple is an edge in both directions: from head to tail it has the
number r of its relation, from tail to head r + R.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import Share
from bertillery.data import pydocs
from bertillery.data.files import distinct
from bertillery.engine.rng import key, uniform
from bertillery.run.inputs import Fingerprint, describe_files
from bertillery.system.files import make_once, sha256
from bertillery.system.records import read_json
from knowledge import docs_graph
from knowledge.triples import SUFFIXES, Entity, Order, Triple, read_entities, read_triples

FORMAT = 1
"""Part of the folder's name; raise it when the files change."""
_CHUNK = 1 << 20
"""Triples that are in memory at a time."""
_REMEDY = "delete this folder: it is made again"


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


class _Manifest(BaseModel):
    format: int
    entities: int
    relations: list[str]
    triples: int
    valid: int
    test: int
    files: dict[str, tuple[int, str]]
    """Size and SHA-256."""


@dataclass(frozen=True)
class Graph:
    """A graph that :func:`prepare_graph` made."""

    path: Path
    relations: list[str]
    """Names (R)."""
    num_entities: int
    triples: np.ndarray
    """int32 (M, 3): head, relation and tail, sorted, each once; those that are held out are not here."""
    valid: np.ndarray
    """int32, of the same form."""
    test: np.ndarray
    offsets: np.ndarray
    """int64 (E+1): where the edges of an entity begin."""
    edges: np.ndarray
    """int32 (2M, 2): relation and the other end, sorted by entity, relation and other end."""
    fingerprint: Fingerprint

    @classmethod
    def open(cls, path: Path) -> Graph:
        """Map the graph in a folder; ``InputError`` where it is damaged or none."""
        found = read_json(path / "manifest.json", _Manifest, remedy=f"not a graph, or a damaged one: {_REMEDY}")
        if found.format != FORMAT:
            raise InputError(f"{path}: format {found.format}, this version reads {FORMAT}; {_REMEDY}")
        for name, (size, _) in found.files.items():
            if not (path / name).is_file() or (path / name).stat().st_size != size:
                raise InputError(f"{path}: damaged: {name} is missing or has another size; {_REMEDY}")
        what = f"{found.entities:,} entities, {found.triples + found.valid + found.test:,} triples"
        content = hashlib.sha256(json.dumps(sorted((name, sha) for name, (_, sha) in found.files.items())).encode())
        return cls(
            path,
            found.relations,
            found.entities,
            _mapped(path / "triples.bin", np.int32, (found.triples, 3)),
            _mapped(path / "valid.bin", np.int32, (found.valid, 3)),
            _mapped(path / "test.bin", np.int32, (found.test, 3)),
            _mapped(path / "offsets.bin", np.int64, (found.entities + 1,)),
            _mapped(path / "edges.bin", np.int32, (2 * found.triples, 2)),
            Fingerprint(content.hexdigest(), what),
        )

    @property
    def num_relations(self) -> int:
        """R."""
        return len(self.relations)

    def neighbours(self, entity: int) -> tuple[np.ndarray, np.ndarray]:
        """Relations and other ends of an entity's edges in both directions, sorted: int32 (d,) each."""
        found = self.edges[self.offsets[entity] : self.offsets[entity + 1]]
        return found[:, 0], found[:, 1]

    @property
    def degrees(self) -> np.ndarray:
        """Edges of each entity, int64 (E,)."""
        return np.diff(self.offsets)

    @cached_property
    def names(self) -> Texts:
        """What triples call each entity."""
        return Texts.open(self.path / "names", self.num_entities)

    @cached_property
    def labels(self) -> Texts:
        """What texts call each entity first."""
        return Texts.open(self.path / "labels", self.num_entities)

    def aliases(self) -> Iterator[tuple[int, list[str]]]:
        """Entities with what else texts call them."""
        with (self.path / "aliases.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                entity, *found = json.loads(line)
                yield entity, found


@dataclass(frozen=True)
class Texts:
    """Many texts in one mapped file."""

    content: np.ndarray
    offsets: np.ndarray

    @classmethod
    def open(cls, stem: Path, number: int) -> Texts:
        """Those in ``<stem>.txt``."""
        file, offsets = stem.with_suffix(".txt"), _mapped(stem.with_suffix(".bin"), np.int64, (number + 1,))
        return cls(_mapped(file, np.uint8, (file.stat().st_size,)), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> str:
        return self.content[self.offsets[number] : self.offsets[number + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))


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
    manifest = _Manifest(format=FORMAT, entities=len(known), relations=[*relations], **counts, files=written)
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
    out = _mapped(grouped, np.int32, rows.shape, "w+")
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
    return _mapped(file, np.int32, (file.stat().st_size // 12, 3))


def _mapped(file: Path, dtype: Any, shape: tuple[int, ...], mode: Any = "r") -> np.ndarray:
    return np.memmap(file, dtype, mode, shape=shape) if all(shape) else np.zeros(shape, dtype)


def _write_texts(stem: Path, texts: Iterable[str]) -> None:
    lengths = [0]
    with stem.with_suffix(".txt").open("wb") as stream:
        lengths += [stream.write(text.encode()) for text in texts]
    np.cumsum(np.array(lengths, np.int64)).tofile(stem.with_suffix(".bin"))


def graph_report(graph: Graph) -> str:
    """Sizes, and the most frequent relations."""
    counts = np.bincount(graph.triples[:, 1], minlength=graph.num_relations)
    most = [f"{graph.relations[number]} {counts[number]:,}" for number in np.argsort(-counts, kind="stable")[:5]]
    held = " and ".join(f"{len(part):,}" for part in (graph.valid, graph.test) if len(part)) or "none"
    return (
        f"graph       {graph.num_entities:,} entities, {graph.num_relations:,} relations, {len(graph.triples):,} "
        f"triples, {held} held out\n            {', '.join(most)}"
    )
