"""Simple paths between two concepts of a graph, the shortest first, and how likely a knowledge graph embedding finds
them (Lin et al. 2019, KagNet, sections 3.2 and 3.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise

import numpy as np

from knowledge.graph import Graph

KEPT_WHOLE = 3
"""Of paths with more concepts, only the first one of a pair is kept."""


@dataclass(frozen=True)
class Path:
    """Concepts, and the relations from each to the next: r, or r + R where the fact is in the other direction."""

    concepts: tuple[int, ...]
    relations: tuple[int, ...]
    score: float
    """Product of its edges' scores."""


class PathFinder:
    """Looks for paths in the sorted adjacency arrays, from both ends.

    What it remembers is bounded: the neighbours of some thousand concepts, and the concepts two edges away of some
    hundred.
    """

    def __init__(
        self,
        graph: Graph,
        vectors: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        longest: int = 4,
        most: int = 100,
        threshold: float = 0.15,
    ) -> None:
        """Paths of up to ``longest`` edges, of which ``most`` are looked at for each pair.

        ``vectors`` are those of concepts (E, w) and relations (R, w) of TransE. A path whose score is below
        ``threshold`` is dropped; without vectors every edge has the score 1.
        """
        self.graph, self.longest, self.most, self.threshold = graph, longest, most, threshold
        self._vectors = vectors
        tables = [] if vectors is None else [hashlib.sha256(each.tobytes()).hexdigest() for each in vectors]
        self.settings = [longest, most, threshold if tables else None, *tables]
        """What decides which paths are found, beside the graph."""
        self.num_pruned = 0
        self.near = lru_cache(maxsize=8192)(self._near)
        self._two_away = lru_cache(maxsize=512)(self._compute_two_away)
        self._edge = lru_cache(maxsize=1 << 17)(self._best_relation)

    def between(self, start: int, end: int) -> list[Path]:
        """The paths that are kept: those of up to three concepts, and the first one in any case."""
        kept: list[Path] = []
        for concepts in islice(self.simple_paths(start, end), self.most):
            if kept and len(concepts) > KEPT_WHOLE:
                break
            edges = [self._edge(*ends) for ends in pairwise(concepts)]
            score = float(np.prod([score for _, score in edges]))
            if score < self.threshold:
                self.num_pruned += 1
            else:
                kept.append(Path(concepts, tuple(relation for relation, _ in edges), score))
        return kept

    def simple_paths(self, start: int, end: int) -> Iterator[tuple[int, ...]]:
        """Every path that meets no concept twice, the shortest first, those of a length in the order of their concepts
        from the end; lazily."""
        if start == end:
            return
        last = self.near(end)
        if has(self.near(start), end):
            yield start, end
        if self.longest > 1:
            yield from ((start, middle, end) for middle in _common(self.near(start), last))
        if self.longest > 2:
            for third in _common(self._two_away(start), last):
                if third != start:
                    for second in _common(self.near(start), self.near(third)):
                        if second not in (third, end):
                            yield start, second, third, end
        if self.longest > 3:
            for fourth in last.tolist():
                if fourth != start:
                    for third in _common(self._two_away(start), self.near(fourth)):
                        if third not in (start, end):
                            for second in _common(self.near(start), self.near(third)):
                                if second not in (fourth, end):
                                    yield start, second, third, fourth, end

    def _near(self, concept: int) -> np.ndarray:
        """Concepts one edge away, sorted, each once."""
        found = np.unique(self.graph.neighbours(concept)[1])
        return found[found != concept]

    def _compute_two_away(self, concept: int) -> np.ndarray:
        """Concepts that are neighbours of a neighbour, sorted."""
        parts = [self.near(middle) for middle in self.near(concept).tolist()]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int32)

    def _best_relation(self, start: int, end: int) -> tuple[int, float]:
        """The likeliest relation of those between two concepts, and its score, (1 + cos(r, t - h)) / 2."""
        number = self.graph.num_relations
        if self.graph.offsets[start + 1] - self.graph.offsets[start] > (
            self.graph.offsets[end + 1] - self.graph.offsets[end]
        ):  # the other end has fewer edges to look through
            relation, score = self._best_relation(end, start)
            return (relation + number) % (2 * number), score
        relations, others = self.graph.neighbours(start)
        found = relations[others == end]
        if self._vectors is None:
            return int(found[0]), 1.0
        concepts, table = self._vectors
        step = concepts[end] - concepts[start]
        wanted = np.where(found < number, 1, -1)[:, None] * table[found % number]
        lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(step)
        scores = (1 + wanted @ step / np.maximum(lengths, 1e-12)) / 2
        return int(found[scores.argmax()]), float(scores.max())


def _common(a: np.ndarray, b: np.ndarray) -> list[int]:
    """What two sorted arrays have in common, sorted: the shorter one is looked up in the longer one."""
    if len(a) > len(b):
        a, b = b, a
    if not len(a):
        return []
    at = np.searchsorted(b, a)
    at[at == len(b)] = 0
    return a[b[at] == a].tolist()


def has(values: np.ndarray, value: int) -> bool:
    """Whether sorted values hold this one."""
    at = np.searchsorted(values, value)
    return bool(at < len(values) and values[at] == value)
