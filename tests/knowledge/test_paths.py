"""Simple paths against a plain enumeration, their bounds, and their scores."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from knowledge.graph import Graph
from knowledge.prepare import GraphSection, prepare_graph
from knowledge.questions.paths import PathFinder


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Nine entities and some twenty facts, also two of one pair and one in both directions."""
    folder, rng = tmp_path_factory.mktemp("paths"), np.random.default_rng(3)
    ends = [rng.choice(9, 2, replace=False) for _ in range(18)]
    facts = {(int(a), int(rng.integers(3)), int(b)) for a, b in ends} | {(0, 1, 1), (1, 1, 0), (0, 2, 1)}
    (folder / "graph.tsv").write_text("".join(f"e{a}\tr{r}\te{b}\n" for a, r, b in sorted(facts)))
    return prepare_graph(GraphSection(path=[str(folder / "graph.tsv")], holdout=0.01), folder / "cache")


def linked(graph: Graph) -> set[tuple[int, int]]:
    both = {(a, b) for a, _, b in graph.triples.tolist()}
    return both | {(b, a) for a, b in both}


@pytest.mark.parametrize("longest", [1, 2, 3, 4])
def test_every_simple_path_is_found_once_the_shortest_first(graph: Graph, longest: int) -> None:
    edges, finder = linked(graph), PathFinder(graph, longest=longest)
    for start in range(graph.num_entities):
        for end in range(graph.num_entities):
            others = [each for each in range(graph.num_entities) if each not in (start, end)]
            wanted = {
                path
                for between in range(longest)
                for middle in permutations(others, between)
                if start != end and all(ends in edges for ends in zip((start, *middle), (*middle, end), strict=True))
                for path in [(start, *middle, end)]
            }
            found = [*finder.simple_paths(start, end)]
            assert len(found) == len({*found})
            assert {*found} == wanted
            assert [len(path) for path in found] == sorted(map(len, found))


def test_long_paths_are_kept_only_where_they_are_the_first(graph: Graph) -> None:
    finder = PathFinder(graph)
    kinds = set()
    for start in range(graph.num_entities):
        for end in range(graph.num_entities):
            every, kept = [*finder.simple_paths(start, end)], finder.between(start, end)
            wanted = [path for number, path in enumerate(every) if number == 0 or len(path) <= 3]
            assert [each.concepts for each in kept] == wanted
            kinds |= {(len(wanted), len(path)) for path in wanted}
    assert max(kinds)[0] > 1


def test_no_more_paths_of_a_pair_are_looked_at_than_asked_for(graph: Graph) -> None:
    for most in (1, 2):
        finder = PathFinder(graph, most=most)
        found = [len(finder.between(a, b)) for a in range(graph.num_entities) for b in range(graph.num_entities)]
        assert max(found) == most


def test_relations_are_facts_in_their_direction_and_scores_their_products(graph: Graph) -> None:
    rng, facts = np.random.default_rng(0), {*map(tuple, graph.triples.tolist())}
    concepts, table = rng.normal(size=(graph.num_entities, 5)), rng.normal(size=(graph.num_relations, 5))
    finder, checked = PathFinder(graph, (concepts, table), threshold=0.0), 0
    for start in range(graph.num_entities):
        for end in range(graph.num_entities):
            for path in finder.between(start, end):
                product = 1.0
                for head, relation, tail in zip(path.concepts, path.relations, path.concepts[1:], strict=False):
                    number = graph.num_relations
                    fact = (head, relation, tail) if relation < number else (tail, relation - number, head)
                    assert fact in facts
                    scores = []
                    for a, r, b in facts:
                        if {a, b} == {head, tail}:
                            step = concepts[b] - concepts[a]
                            cosine = table[r] @ step / np.linalg.norm(table[r]) / np.linalg.norm(step)
                            scores.append((1 + cosine) / 2)
                    product *= max(scores)
                assert path.score == pytest.approx(product)
                checked += len(path.relations) > 1
    assert checked


def test_unlikely_paths_are_dropped_and_counted(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(graph.num_entities, 5)), rng.normal(size=(graph.num_relations, 5))
    pairs = [(a, b) for a in range(graph.num_entities) for b in range(a)]
    whole, pruned = PathFinder(graph, vectors, threshold=0.0), PathFinder(graph, vectors, threshold=0.4)
    likely = [[path for path in whole.between(*pair) if path.score >= 0.4] for pair in pairs]
    kept = [pruned.between(*pair) for pair in pairs]
    assert pruned.num_pruned > 0
    for before, after in zip(likely, kept, strict=True):
        assert all(path.score >= 0.4 for path in after)
        assert [path for path in after if len(path.concepts) < 4] == [path for path in before if len(path.concepts) < 4]
