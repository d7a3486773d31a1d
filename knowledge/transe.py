"""Training of TransE: the margin between a triple and corrupted ones (Bordes et al. 2013, equation 1)."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from bertillery.config.section import Section
from bertillery.config.types import Count, Factor, Width
from bertillery.data.listed import ROW
from bertillery.engine.batch import PackedBatch, pack
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.objective import Objective, Term
from bertillery.engine.rng import integers, key, uniform
from bertillery.engine.schedule import EpochSize
from bertillery.models.families.transe import TransEConfig, TransEModel
from knowledge.graph import Graph
from knowledge.ranks import Known, rank_metrics, ranks

_BLOCK = 1 << 20
_TIMED = 100
"""Triples whose ranks are timed for an estimate."""


class EmbeddingSection(Section):
    """Vectors and the loss."""

    embedding_size: Width = 100
    """Width of the vectors."""
    norm: Literal[1, 2] = 1
    """Distance: the sum of absolute differences, or the Euclidean one."""
    margin: Factor = 5.0
    """How much farther a corrupted triple should be."""
    corruptions: Count = 16
    """Corrupted triples for each true one."""
    side: Literal["bernoulli", "uniform"] = "bernoulli"
    """Which end is replaced: the head with the probability tph / (tph + hpt), where tph are the mean tails of a head
    and hpt the mean heads of a tail (Wang et al. 2014), so that fewer corruptions are true; or either one alike."""


class Triples:
    """A source (:class:`bertillery.engine.objective.Source`) of triples with their corruptions.

    A corruption that is true in the training triples is drawn once more.
    """

    def __init__(self, graph: Graph, triples: np.ndarray, section: EmbeddingSection, *, seed: int) -> None:
        self.graph, self.triples, self.section, self.seed = graph, triples, section, seed
        self.num_blocks = max(1, -(-len(triples) // _BLOCK))
        self._known = _codes(graph, graph.triples)
        self._heads = _replaces_heads(graph) if section.side == "bernoulli" else np.full(graph.num_relations, 0.5)

    def epoch_size(self) -> EpochSize:
        """Triples of an epoch, and three times as many parts."""
        return EpochSize(len(self.triples), 3 * len(self.triples))

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """Rows of ``ROW``; a triple has the length 3."""
        index = np.arange(block * _BLOCK, min(len(self.triples), (block + 1) * _BLOCK))
        rows = np.zeros(len(index), ROW)
        rows["index"], rows["length"], rows["key"] = index, 3, key(self.seed, epoch, index)
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """Triples end to end, with rows of entities; targets ``corrupted`` (B, K), other rows, and ``heads`` (B,) bool,
        where these replace the head; count ``triples``."""
        triples = self.triples[rows["index"]].astype(np.int64)
        heads = uniform(rows["key"], 0) < self._heads[triples[:, 1]]
        others = self._corrupted(triples, heads, rows["key"], 1)
        again = self._true(triples, heads, others)
        others[again] = self._corrupted(triples, heads, rows["key"], 2)[again]
        shifted = triples + np.array([1, 0, 1])
        return pack(
            shifted.ravel(), None, np.full(len(rows), 3),
            targets={"corrupted": others + 1, "heads": heads}, counts={"triples": len(rows)},
        )  # fmt: skip

    def _corrupted(self, triples: np.ndarray, heads: np.ndarray, keys: np.ndarray, turn: int) -> np.ndarray:
        """Entities (B, K), all but the one that is replaced alike."""
        number = np.arange(self.section.corruptions)
        drawn = integers(self.graph.num_entities - 1, keys[:, None], turn, number)
        replaced = np.where(heads, triples[:, 0], triples[:, 2])[:, None]
        return drawn + (drawn >= replaced)

    def _true(self, triples: np.ndarray, heads: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(B, K) bool, which corruptions are triples of the graph."""
        head, relation, tail = (column[:, None] for column in triples.T)
        parts = np.where(heads[:, None], others, head), relation + 0 * others, np.where(heads[:, None], tail, others)
        codes = _codes(self.graph, np.stack(parts, -1))
        at = np.minimum(np.searchsorted(self._known, codes), len(self._known) - 1)
        return self._known[at] == codes


def _codes(graph: Graph, triples: np.ndarray) -> np.ndarray:
    """A number for each triple (..., 3), ascending as they are sorted."""
    wide = triples.astype(np.int64)
    return (wide[..., 0] * graph.num_relations + wide[..., 1]) * graph.num_entities + wide[..., 2]


def _replaces_heads(graph: Graph) -> np.ndarray:
    """Probability (R,) with which a head is replaced."""
    triples, relations = graph.triples, graph.num_relations
    counts = np.bincount(triples[:, 1], minlength=relations)
    ends = [
        np.bincount(np.unique(triples[:, [1, end]], axis=0)[:, 0], minlength=relations) for end in (0, 2)
    ]  # different heads and tails
    tails_a_head, heads_a_tail = (counts / np.maximum(1, each) for each in ends)
    return tails_a_head / np.maximum(1e-9, tails_a_head + heads_a_tail)


class TransEObjective(Objective):
    """A model whose true triples are closer than corrupted ones, by a margin."""

    def __init__(self, graph: Graph, section: EmbeddingSection) -> None:
        super().__init__()
        self.section = section
        config = TransEConfig(
            vocab_size=graph.num_entities + 1,
            num_relations=graph.num_relations,
            embedding_size=section.embedding_size,
            norm=section.norm,
        )
        self.model = TransEModel(config)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``margin``, the loss, and ``separated``, the share of corruptions beyond the margin."""
        head, relation, tail = batch.input.ids.view(-1, 3).unbind(1)
        corrupted, heads = batch.targets["corrupted"], batch.targets["heads"][:, None]
        table = self.model.entity_vectors()  # scaled once, not for every corruption
        start, end, step = F.embedding(head, table), F.embedding(tail, table), self.model.relation_vectors(relation)
        moved, goal = start + step, end - step
        distance = torch.linalg.vector_norm(moved - end, ord=self.section.norm, dim=-1)[:, None]
        # A corrupted head h' is |h' + r - t| away, a corrupted tail t' is |t' - (h + r)|: one point for each triple.
        point = torch.where(heads, goal, moved)[:, None]
        others = F.embedding(corrupted, table) - point
        gap = distance - torch.linalg.vector_norm(others, ord=self.section.norm, dim=-1) + self.section.margin
        return {
            "margin": Term(F.relu(gap).mean(1).sum(), "triples", title="margin loss"),
            "separated": Term(
                (gap.detach() <= 0).float().mean(1).sum(), "triples", 0.0,
                title="corruptions beyond the margin", direction="higher",
            ),
        }  # fmt: skip

    def exported(self) -> TransEModel:
        """The model."""
        return self.model

    def flops(self, batch: PackedBatch) -> float:
        """None: there is no matrix product."""
        return 0.0

    @torch.no_grad()
    def distances(self, triples: Any, tail: bool) -> Any:
        """Distances (B, E) of triples (B, 3) of entities (not rows) whose tail or head is replaced by each entity."""
        device = self.model.entities.weight.device
        triples, every = triples.to(device), self.model.entity_vectors()[1:]
        given = self.model.entity_vectors(triples[:, 0 if tail else 2] + 1)
        relation = self.model.relation_vectors(triples[:, 1])
        point = given + relation if tail else given - relation
        return torch.cdist(point.float(), every.float(), p=float(self.section.norm)).cpu()


class RankedTriples(HeldOut):
    """Held-out triples, whose filtered ranks choose the best weights."""

    def __init__(self, source: Triples, known: Known, *, num_examples: int | None) -> None:
        super().__init__(source, num_examples=num_examples)
        self._triples, self._known = source.triples[np.sort(self.rows["index"])], known

    def seconds(self, accelerator: Any, objective: Any) -> float:
        """That of the loss, and of the ranks, from some of them."""
        loss, began, some = super().seconds(accelerator, objective), time.perf_counter(), self._triples[:_TIMED]
        ranks(some, self._known, accelerator.unwrap_model(objective).distances)
        return loss + (time.perf_counter() - began) * len(self._triples) / len(some)

    def score(self, values: dict[str, float]) -> float:
        """The filtered mean reciprocal rank."""
        return values["mrr"]

    def evaluate(self, accelerator: Any, objective: Any) -> dict[str, float]:
        """The loss, and metrics of the filtered ranks, which every process computes alike."""
        values = super().evaluate(accelerator, objective)
        _, filtered = ranks(self._triples, self._known, accelerator.unwrap_model(objective).distances)
        return values | rank_metrics(filtered)
