"""Ranks of true triples among all candidates for their head or tail: raw, and filtered of other true ones (Bordes et
al. 2013, section 4.2).

The rank of a tie is in its middle, so that a scorer that finds everything alike is at chance. Legend: B triples, E
entities.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from knowledge.graph import Graph

Distances = Callable[[Tensor, bool], Tensor]
"""Distances (B, E) of triples (B, 3) whose tail (``True``) or head is replaced by every entity."""
HITS = (1, 3, 10)
_BATCH = 128


class Known:
    """What is true in a graph, held-out triples included."""

    def __init__(self, graph: Graph) -> None:
        every = np.concatenate([graph.triples, graph.valid, graph.test]).astype(np.int64)
        self._relations = graph.num_relations
        self._sides = {
            tail: _grouped(every[:, end] * graph.num_relations + every[:, 1], every[:, 2 - end])
            for tail, end in ((True, 0), (False, 2))
        }

    def of(self, triples: np.ndarray, *, tail: bool) -> tuple[np.ndarray, np.ndarray]:
        """The entities that make each of the triples (B, 3) true as its tail or head: rows of ``triples`` and
        entities."""
        keys, entities = self._sides[tail]
        wanted = triples[:, 0 if tail else 2].astype(np.int64) * self._relations + triples[:, 1]
        begin, end = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, side="right")
        rows = np.repeat(np.arange(len(triples)), end - begin)
        return rows, entities[np.concatenate([np.arange(*pair) for pair in zip(begin, end, strict=True)])]


def _grouped(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], values[order]


@torch.no_grad()
def ranks(triples: np.ndarray, known: Known, distances: Distances) -> tuple[np.ndarray, np.ndarray]:
    """Raw and filtered ranks, float64 (2B,) each, from 1: of the tails of ``triples`` (B, 3), then of their heads."""
    raw, filtered = [], []
    for tail in (True, False):
        side = "tails" if tail else "heads"
        for at in tqdm(range(0, len(triples), _BATCH), f"ranking {side}", unit=" batches", leave=False, disable=None):
            part = triples[at : at + _BATCH]
            found = distances(torch.from_numpy(part.astype(np.int64)), tail).double()
            right = torch.from_numpy(part[:, 2 if tail else 0].astype(np.int64))[:, None]
            wanted = found.gather(1, right)
            raw.append(_rank(found, wanted))
            rows, entities = known.of(part, tail=tail)
            found[torch.from_numpy(rows), torch.from_numpy(entities)] = torch.inf
            filtered.append(_rank(found.scatter(1, right, wanted), wanted))
    return np.concatenate(raw), np.concatenate(filtered)


def _rank(distances: Tensor, wanted: Tensor) -> np.ndarray:
    """1 + those that are closer + half of the others at the same distance; what is not a number is last."""
    distances, wanted = distances.nan_to_num(torch.inf), wanted.nan_to_num(torch.inf)
    closer, alike = (distances < wanted).sum(1), (distances == wanted).sum(1)
    return (1 + closer + (alike - 1) / 2).numpy()


def rank_metrics(found: np.ndarray) -> dict[str, float]:
    """Mean reciprocal rank, the shares of ranks up to 1, 3 and 10, and the mean rank."""
    hits = {f"hits@{k}": float((found <= k).mean()) for k in HITS}
    return {"mrr": float((1 / found).mean()), **hits, "mean_rank": float(found.mean())}


def chance(entities: int) -> dict[str, float]:
    """What a random order of the entities reaches."""
    hits = {f"hits@{k}": min(1.0, k / entities) for k in HITS}
    return {"mrr": float((1 / np.arange(1, entities + 1)).sum() / entities), **hits, "mean_rank": (entities + 1) / 2}
