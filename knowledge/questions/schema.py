"""The schema graph of each choice of a question (Lin et al. 2019, KagNet, section 3.2): its paths from the concepts of
the question to those of the choice, and the facts on them and among either.

Legend: N questions, S choices of all of them; V nodes, E edges, Q pairs, P paths, M nodes of all paths.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from bertillery.config.section import InputError
from bertillery.engine.batch import ranges
from bertillery.models.families.kagnet import SchemaGraphs
from bertillery.run.inputs import digest
from bertillery.system.files import make_once
from bertillery.system.records import read_json
from knowledge.graph import Graph
from knowledge.questions.grounding import Grounding
from knowledge.questions.paths import PathFinder, has

logger = logging.getLogger(__name__)
VERSION = 1
"""Part of the name of what is written; raise it when a change here, in grounding or in paths alters the graphs."""
_SHOWN = 1000
"""Questions from one line of progress to the next."""
_REMEDY = "delete this folder: it is made again"


class Counts(BaseModel):
    """What was found in some questions."""

    questions: int = 0
    ungrounded: int = 0
    """Questions without a concept: their choices are scored from the text alone."""
    choices: int = 0
    without_paths: int = 0
    """Choices that no path leads to, those of ungrounded questions among them."""
    concepts: int = 0
    """Of questions, together."""
    pairs: int = 0
    paths: int = 0
    pruned: int = 0
    megabytes: float = 0.0
    """Of the arrays on disk."""
    seconds: float = 0.0
    """That making them took."""

    def __str__(self) -> str:
        return (
            f"{self.concepts / max(1, self.questions):.1f} concepts a question, {self.ungrounded:,} of "
            f"{self.questions:,} without any; {self.paths:,} paths of {self.pairs:,} pairs, {self.pruned:,} pruned; "
            f"{self.without_paths:,} of {self.choices:,} choices have none and are read as text alone; "
            f"{self.megabytes:.1f} MB, made in {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class SchemaTable:
    """The schema graphs of S choices as flat arrays, int32. Nodes and pairs are numbered within their choice."""

    sizes: np.ndarray
    """(S, 5): nodes, edges, pairs, paths, and nodes of paths of each choice."""
    concepts: np.ndarray
    """(V,)."""
    edges: np.ndarray
    """(E, 2): nodes that an edge is from and to; every link is there in both directions."""
    pairs: np.ndarray
    """(Q, 2): nodes of a concept of the question and of one of the choice."""
    paths: np.ndarray
    """(P, 2): the pair, and the number of nodes."""
    steps: np.ndarray
    """(M, 2): node, and the relation to the next: r, r + R against its direction, 2 R at the end."""
    counts: Counts

    def take(self, choices: np.ndarray) -> SchemaGraphs:
        """The graphs of some choices (k,), end to end; all numbers count through."""
        sizes = self.sizes[choices].astype(np.int64)
        before = np.cumsum(sizes, 0) - sizes

        def rows(table: np.ndarray, kind: int) -> np.ndarray:
            begins = self._starts[choices, kind]
            return table[np.repeat(begins, sizes[:, kind]) + ranges(sizes[:, kind])].astype(np.int64)

        def owners(kind: int, of: int) -> np.ndarray:
            return np.repeat(before[:, of], sizes[:, kind])

        paths, steps = rows(self.paths, 3), rows(self.steps, 4)
        pairs = rows(self.pairs, 2) + owners(2, 0)[:, None]
        found = {
            "concepts": rows(self.concepts, 0),
            "edges": (rows(self.edges, 1) + owners(1, 0)[:, None]).T,
            "pairs": np.stack([np.repeat(np.arange(len(choices)), sizes[:, 2]), *pairs.T]),
            "path_pairs": paths[:, 0] + owners(3, 2),
            "path_lengths": paths[:, 1],
            "path_nodes": steps[:, 0] + owners(4, 0),
            "path_relations": steps[:, 1],
        }
        return SchemaGraphs(**{name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in found.items()})

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where the rows of each choice begin, int64 (S, 5)."""
        return np.cumsum(self.sizes, 0, dtype=np.int64) - self.sizes

    def path(self, choice: int, number: int) -> tuple[list[int], list[int]]:
        """The concepts of one path of a choice, and the relations between them."""
        found = self.take(np.array([choice]))
        end = int(found.path_lengths[: number + 1].sum())
        steps = slice(end - int(found.path_lengths[number]), end)
        return found.concepts[found.path_nodes[steps]].tolist(), found.path_relations[steps][:-1].tolist()

    def links(self) -> np.ndarray:
        """Links of one edge and of two between the concepts of each choice and of its question, int64 (S, 2)."""
        choice = np.repeat(np.arange(len(self.sizes)), self.sizes[:, 3])
        lengths = self.paths[:, 1]
        return np.stack([np.bincount(choice[lengths == nodes], minlength=len(self.sizes)) for nodes in (2, 3)], axis=1)


_ARRAYS: dict[str, tuple[int, ...]] = {
    "sizes": (5,), "concepts": (), "edges": (2,), "pairs": (2,), "paths": (2,), "steps": (2,),
}  # fmt: skip
"""What a table is made of, and the shape of a row."""


class _Builder:
    """Schema graphs, choice after choice."""

    def __init__(self, graph: Graph, finder: PathFinder) -> None:
        self.finder, self.end = finder, 2 * graph.num_relations
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
        self.counts = Counts()

    def add(self, question: Sequence[int], choice: Sequence[int]) -> None:
        """The graph of a choice that names the concepts ``choice``; those are none of the question's here."""
        asked = [concept for concept in question if concept not in choice]
        found = [(pair, each) for pair in product(asked, choice) for each in self.finder.between(*pair)]
        pairs = {pair: number for number, pair in enumerate(dict.fromkeys(pair for pair, _ in found))}
        met = chain(asked, choice, *(each.concepts for _, each in found)) if found else ()
        nodes = {concept: number for number, concept in enumerate(dict.fromkeys(met))}
        links = {ends for _, each in found for ends in pairwise(each.concepts)}
        for group in (asked, choice) if found else ():
            links |= {ends for ends in combinations(group, 2) if has(self.finder.near(ends[0]), ends[1])}
        links |= {(end, start) for start, end in links}
        steps = [step for _, each in found for step in zip(each.concepts, (*each.relations, self.end), strict=True)]
        parts: dict[str, list[Any]] = {
            "concepts": [*nodes],
            "edges": [(nodes[start], nodes[end]) for start, end in sorted(links)],
            "pairs": [(nodes[start], nodes[end]) for start, end in pairs],
            "paths": [(pairs[pair], len(each.concepts)) for pair, each in found],
            "steps": [(nodes[concept], relation) for concept, relation in steps],
        }
        parts["sizes"] = [[len(part) for part in parts.values()]]
        for name, shape in _ARRAYS.items():
            self.parts[name].append(np.array(parts[name], np.int32).reshape(-1, *shape))
        self.counts.choices += 1
        self.counts.without_paths += not found
        self.counts.pairs += len(pairs)
        self.counts.paths += len(found)

    def table(self) -> SchemaTable:
        """All of them."""
        nothing = {name: np.zeros((0, *shape), np.int32) for name, shape in _ARRAYS.items()}
        arrays = {name: np.concatenate([nothing[name], *parts]) for name, parts in self.parts.items()}
        self.counts.megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
        return SchemaTable(**arrays, counts=self.counts)


def build(graph: Graph, finder: PathFinder, questions: Sequence[str], choices: Sequence[Sequence[str]]) -> SchemaTable:
    """The schema graphs of all choices of all questions, end to end. A choice that is an empty text is none."""
    begun, builder, pruned = time.monotonic(), _Builder(graph, finder), finder.num_pruned
    grounding = Grounding(graph, chain(questions, chain.from_iterable(choices)))
    for number, (question, texts) in enumerate(zip(questions, choices, strict=True), 1):
        asked = grounding.concepts(question)
        builder.counts.questions += 1
        builder.counts.ungrounded += not asked
        builder.counts.concepts += len(asked)
        for text in filter(None, texts):
            builder.add(asked, grounding.concepts(text))
        if number % _SHOWN == 0:
            logger.info("schema graphs: %d of %d questions, %.0f s", number, len(questions), time.monotonic() - begun)
    builder.counts.pruned = finder.num_pruned - pruned
    builder.counts.seconds = time.monotonic() - begun
    return builder.table()


def prepare_schema(
    graph: Graph, finder: PathFinder, questions: Sequence[str], choices: Sequence[Sequence[str]], cache: Path
) -> SchemaTable:
    """:func:`build`, or what it built before in ``cache``, mapped into memory; one process builds, others wait.

    Raises ``InputError`` where what is there is damaged.
    """
    made_from = [VERSION, graph.fingerprint.sha256, finder.settings, [*questions], [*map(list, choices)]]
    folder = cache / f"schema-{digest(made_from)[:16]}"

    def make(partial: Path) -> Path:
        table, made = build(graph, finder, questions, choices), partial / "schema"
        made.mkdir(exist_ok=True)
        for name in _ARRAYS:
            np.save(made / f"{name}.npy", getattr(table, name))
        (made / "counts.json").write_text(table.counts.model_dump_json(), encoding="utf-8")
        return made

    make_once(folder, make, doing="is looking for paths in a graph")
    counts = read_json(folder / "counts.json", Counts, remedy=_REMEDY)
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be read ({error}); {_REMEDY}") from None
    return SchemaTable(**arrays, counts=counts)
