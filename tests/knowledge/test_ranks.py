"""Ranks: a constant scorer is at chance, filtering only helps, against a plain count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from knowledge.graph import Graph
from knowledge.prepare import GraphSection, prepare_graph
from knowledge.ranks import Known, chance, rank_metrics, ranks


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph")
    rows = np.random.default_rng(0).integers(0, [30, 3, 30], (300, 3)).tolist()
    (folder / "t.tsv").write_text("\n".join("\t".join(map(str, row)) for row in rows))
    return prepare_graph(GraphSection(path=[str(folder / "t.tsv")], holdout=0.2), folder / "cache")


def random_distances(triples: Tensor, tail: bool) -> Tensor:
    """Functions of the triple's other parts, so that each query has scores of its own."""
    fixed, side = triples[:, 0 if tail else 2], int(tail)
    seeds = (fixed * 31 + triples[:, 1] * 7 + side).tolist()
    return torch.stack([torch.from_numpy(np.random.default_rng(seed).integers(0, 9, 30)) for seed in seeds]).float()


def test_ranks_equal_a_plain_count(graph: Graph) -> None:
    every = {tuple(row) for part in (graph.triples, graph.valid, graph.test) for row in part.tolist()}
    raw, filtered = ranks(graph.valid, Known(graph), random_distances)
    number = len(graph.valid)
    for row, (head, relation, tail) in enumerate(graph.valid.tolist()):
        for place, is_tail in ((row, True), (row + number, False)):
            scores = random_distances(torch.tensor([[head, relation, tail]]), is_tail)[0].tolist()
            right = tail if is_tail else head
            others = [each for each in range(graph.num_entities) if each != right]
            fits = [(head, relation, each) if is_tail else (each, relation, tail) for each in others]
            for found, kept in (
                (raw, others),
                (filtered, [o for o, f in zip(others, fits, strict=True) if f not in every]),
            ):
                closer = sum(scores[each] < scores[right] for each in kept)
                alike = sum(scores[each] == scores[right] for each in kept)
                assert found[place] == 1 + closer + alike / 2


def test_filtered_ranks_are_at_most_the_raw_ones(graph: Graph) -> None:
    raw, filtered = ranks(graph.valid, Known(graph), random_distances)
    assert (filtered <= raw).all()
    assert (filtered < raw).any()


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_constant_scorer_is_at_chance(graph: Graph, value: float) -> None:
    """Hits@10 is 0 of 30 candidates, not 1, as it would be if only better ones counted."""
    raw, _ = ranks(graph.valid, Known(graph), lambda triples, _: torch.full((len(triples), 30), value))
    assert (raw == 15.5).all()
    assert rank_metrics(raw)["mean_rank"] == chance(30)["mean_rank"]
    assert rank_metrics(raw)["hits@10"] == 0


def test_chance_is_that_of_a_random_order() -> None:
    found = rank_metrics(np.arange(1, 31).astype(float))
    assert found == pytest.approx(chance(30))
