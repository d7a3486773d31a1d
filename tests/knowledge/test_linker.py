"""Linking: longest match, ambiguity, capitals; precision and recall on linked articles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from knowledge.graph import Graph, GraphSection, prepare_graph
from knowledge.linker import Linker, split_words

DATA = Path(os.environ.get("BERTILLERY_DATA", Path(__file__).parents[2] / "../shared/data"))
ENTITIES = [
    {"id": "york", "label": "York"}, {"id": "nyc", "label": "New York", "aliases": ["Big Apple", "NYC"]},
    {"id": "apple", "label": "apple"}, {"id": "firm", "label": "Apple"}, {"id": "may", "label": "may"},
    {"id": "ada1", "label": "Ada"}, {"id": "ada2", "label": "Ada"}, {"id": "bob1", "label": "Bob"},
    {"id": "bob2", "label": "Bob"},
]  # fmt: skip
TRIPLES = [("york", "nyc"), ("apple", "firm"), ("bob1", "nyc"), ("bob1", "york"), ("bob2", "nyc"), ("ada1", "ada2"),
           ("may", "nyc")]  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph")
    (folder / "e.jsonl").write_text("\n".join(map(json.dumps, ENTITIES)))
    (folder / "t.tsv").write_text("\n".join(f"{a}\tr\t{b}" for a, b in TRIPLES))
    section = GraphSection(path=[str(folder / "t.tsv")], entities=folder / "e.jsonl", holdout=1e-9)
    return prepare_graph(section, folder / "cache")


def linked(graph: Graph, text: str, *, cased: bool = True) -> list[tuple[str, str]]:
    words = split_words(text)
    return [
        (" ".join(words[start:end]), graph.names[entity])
        for start, end, entity in Linker(graph, cased=cased).link(words)
    ]


CASES = {
    "the longest phrase": ("In New York, not York.", [("New York", "nyc"), ("York", "york")]),
    "an alias": ("The Big Apple sleeps.", [("Big Apple", "nyc")]),
    "a name with capitals, and a word": ("Apple sells no apple.", [("Apple", "firm"), ("apple", "apple")]),
    "capitals throughout": ("NEW YORK", [("NEW YORK", "nyc")]),
    "a name without its capital": ("the york road", []),
    "a function word": ("It may rain.", []),
    "of two, the one with more edges": ("Bob came.", [("Bob", "bob1")]),
    "of two with as many, none": ("Ada came.", []),
}


@pytest.mark.parametrize("case", CASES)
def test_mentions(case: str, graph: Graph) -> None:
    text, expected = CASES[case]
    assert linked(graph, text) == expected


def test_text_without_capitals_links_all_forms(graph: Graph) -> None:
    assert linked(graph, "new york and york", cased=False) == [("new york", "nyc"), ("york", "york")]
    assert linked(graph, "apple", cased=False) == [], "two entities with one edge each"


def test_linked_articles(tmp_path: Path) -> None:
    """Precision and recall of the mentions that the graph knows, on articles in lower case.

    Recall is low by nature: articles link a page once, and the dictionary links every mention.
    """
    if not (DATA / "entity_linked_wiki").is_dir():
        pytest.skip("needs entity_linked_wiki and fb15k237, which are not there")
    folder = DATA / "fb15k237"
    section = GraphSection(path=[str(folder / "train.tsv")], entities=folder / "entities.jsonl", holdout=1e-9)
    graph = prepare_graph(section, tmp_path)
    wikidata = [json.loads(line)["wikidata"] for line in (folder / "entities.jsonl").open()]
    linker, there, known, right, found = Linker(graph, cased=False), {*wikidata}, 0, 0, 0
    with (DATA / "entity_linked_wiki/articles.jsonl").open() as articles:
        for article in list(articles)[:40]:
            for sentence in json.loads(article)["sentences"]:
                words = sentence["text"].split(" ")
                given = {(a, b): name for a, b, name in sentence["mentions"] if name in there}
                mentions = {(start, end): wikidata[entity] for start, end, entity in linker.link(words)}
                known += len(given)
                overlapping = [span for span in mentions if any(a < span[1] and span[0] < b for a, b in given)]
                found += len(overlapping)
                right += sum(mentions[span] == given.get(span) for span in overlapping)
    assert right / known > 0.6
    assert right / found > 0.6
    print(f"recall {right / known:.3f}, precision where a mention is given {right / found:.3f}, {known} mentions")
