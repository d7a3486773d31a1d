"""Schema graphs end to end in flat arrays."""

from __future__ import annotations

import numpy as np
import pytest

from knowledge.graph import Graph
from knowledge.questions.paths import PathFinder
from knowledge.questions.schema import SchemaTable, build
from tests.knowledge.graphs import write_graph

FACTS = [
    ("door", "part of", "bank"), ("money", "is in", "bank"), ("door", "is in", "house"), ("house", "is in", "street"),
    ("bank", "is in", "street"), ("door", "used with", "key"), ("tree", "is in", "park"),
]  # fmt: skip
ARRAYS = ("sizes", "concepts", "edges", "pairs", "paths", "steps")
QUESTIONS = ["is money behind a door", "what is it", "a key of the house"]
CHOICES = [["bank", "tree", ""], ["bank", "door"], ["the house", "streets", "door", "a house in the street"]]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return write_graph(tmp_path_factory.mktemp("schema"), FACTS)


@pytest.fixture(scope="module")
def table(graph: Graph) -> SchemaTable:
    return build(graph, PathFinder(graph), QUESTIONS, CHOICES)


def paths(graph: Graph, table: SchemaTable, choice: int) -> list[list[str]]:
    return [[graph.names[each] for each in table.path(choice, at)[0]] for at in range(table.sizes[choice, 3])]


def test_paths_lead_from_concepts_of_the_question_to_those_of_the_choice(graph: Graph, table: SchemaTable) -> None:
    assert len(table.sizes) == 8, "an empty text is no choice"
    assert paths(graph, table, 0) == [["money", "bank"], ["door", "bank"]]
    assert paths(graph, table, 1) == paths(graph, table, 2) == paths(graph, table, 3) == []
    assert paths(graph, table, 4) == [["key", "door", "house"]], "the house is no concept of the question here"
    assert ["house", "street"] in paths(graph, table, 5)
    both = paths(graph, table, 7)
    assert {path[0] for path in both} == {"key"}
    assert {path[-1] for path in both} == {"house", "street"}


def test_what_was_found_is_counted(table: SchemaTable) -> None:
    counts = table.counts
    assert (counts.questions, counts.ungrounded, counts.choices, counts.without_paths) == (3, 1, 8, 3)
    assert (counts.paths, counts.pairs, counts.pruned) == (table.sizes[:, 3].sum(), table.sizes[:, 2].sum(), 0)
    assert counts.concepts == 2 + 0 + 2
    assert counts.megabytes == pytest.approx(4e-6 * sum(getattr(table, name).size for name in ARRAYS))
    assert "1 of 3 without any" in str(counts)


def test_links_of_a_choice_are_its_short_paths(table: SchemaTable) -> None:
    assert table.links().tolist()[:5] == [[2, 0], [0, 0], [0, 0], [0, 0], [0, 1]]


def test_taking_choices_lays_their_graphs_end_to_end(table: SchemaTable) -> None:
    """In the order asked for, a choice twice; all numbers count through."""
    which = np.array([5, 0, 1, 5])
    whole, begin = table.take(which), dict.fromkeys(("concepts", "pairs", "paths", "steps"), 0)
    for place, choice in enumerate(which):
        alone = table.take(np.array([choice]))
        nodes, edges, pairs, number, steps = table.sizes[choice]
        node, pair, path, step = (begin[name] for name in begin)
        edge = int(table.sizes[which[:place], 1].sum())
        assert (whole.concepts[node : node + nodes] == alone.concepts).all()
        assert (whole.edges[:, edge : edge + edges] - node == alone.edges).all()
        assert (whole.pairs[0, pair : pair + pairs] == place).all()
        assert (whole.pairs[1:, pair : pair + pairs] - node == alone.pairs[1:]).all()
        assert (whole.path_pairs[path : path + number] - pair == alone.path_pairs).all()
        assert (whole.path_lengths[path : path + number] == alone.path_lengths).all()
        assert (whole.path_nodes[step : step + steps] - node == alone.path_nodes).all()
        assert (whole.path_relations[step : step + steps] == alone.path_relations).all()
        begin = dict(zip(begin, (node + nodes, pair + pairs, path + number, step + steps), strict=True))
    assert len(whole.concepts) == begin["concepts"]
    assert whole.path_lengths.sum() == len(whole.path_nodes)


def test_a_path_ends_without_a_relation(graph: Graph, table: SchemaTable) -> None:
    found = table.take(np.arange(8))
    ends = np.cumsum(found.path_lengths) - 1
    last = found.path_relations == 2 * graph.num_relations
    assert np.flatnonzero(last).tolist() == ends.tolist()
