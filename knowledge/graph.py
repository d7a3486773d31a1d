"""A knowledge graph on disk: triples as sorted arrays, which are mapped into memory, never loaded whole.

Legend: E entities, R relations, M triples. Each triple is an edge in both directions: from head to tail it has the
number r of its relation, from tail to head r + R. How a graph is made: :mod:`knowledge.prepare`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from bertillery.config.section import InputError
from bertillery.run.inputs import Fingerprint
from bertillery.system.records import read_json

FORMAT = 1
"""Part of the folder's name; raise it when the files change."""
_REMEDY = "delete this folder: it is made again"


class Manifest(BaseModel):
    """What a graph's folder holds."""

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
    """A graph that :func:`knowledge.prepare.prepare_graph` made."""

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
        found = read_json(path / "manifest.json", Manifest, remedy=f"not a graph, or a damaged one: {_REMEDY}")
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
            mapped(path / "triples.bin", np.int32, (found.triples, 3)),
            mapped(path / "valid.bin", np.int32, (found.valid, 3)),
            mapped(path / "test.bin", np.int32, (found.test, 3)),
            mapped(path / "offsets.bin", np.int64, (found.entities + 1,)),
            mapped(path / "edges.bin", np.int32, (2 * found.triples, 2)),
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
        file, offsets = stem.with_suffix(".txt"), mapped(stem.with_suffix(".bin"), np.int64, (number + 1,))
        return cls(mapped(file, np.uint8, (file.stat().st_size,)), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> str:
        return self.content[self.offsets[number] : self.offsets[number + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))


def graph_report(graph: Graph) -> str:
    """Sizes, and the most frequent relations."""
    counts = np.bincount(graph.triples[:, 1], minlength=graph.num_relations)
    most = [f"{graph.relations[number]} {counts[number]:,}" for number in np.argsort(-counts, kind="stable")[:5]]
    held = " and ".join(f"{len(part):,}" for part in (graph.valid, graph.test) if len(part)) or "none"
    return (
        f"graph       {graph.num_entities:,} entities, {graph.num_relations:,} relations, {len(graph.triples):,} "
        f"triples, {held} held out\n            {', '.join(most)}"
    )


def mapped(file: Path, dtype: Any, shape: tuple[int, ...], mode: Any = "r") -> np.ndarray:
    """An array in a file, mapped into memory; numpy cannot map an empty one."""
    return np.memmap(file, dtype, mode, shape=shape) if all(shape) else np.zeros(shape, dtype)
