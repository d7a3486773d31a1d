"""Linking: longest match, ambiguity, capitals; precision and recall on linked articles."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from knowledge.graph import Graph
from knowledge.links.linker import Linker, split_words
from knowledge.prepare import GraphSection, prepare_graph

DATA = Path(os.environ.get("BERTILLERY_DATA", Path(__file__).parents[2] / "../shared/data"))
ENTITIES = [
    {"id": "york", "label": "York"}, {"id": "nyc", "label": "New York", "aliases": ["Big Apple", "NYC"]},
    {"id": "apple", "label": "apple"}, {"id": "firm", "label": "Apple"}, {"id": "may", "label": "may"},
    {"id": "ada1", "label": "Ada"}, {"id": "ada2", "label": "Ada"}, {"id": "bob1", "label": "Bob"},
    {"id": "bob2", "label": "Bob"}, {"id": "moon", "label": "Moon", "aliases": ["The Moon", "the Moon"]},
    {"id": "song", "label": "The York"}, {"id": "times", "label": "The Times", "aliases": ["Times"]},
]  # fmt: skip
TRIPLES = [("york", "nyc"), ("apple", "firm"), ("bob1", "nyc"), ("bob1", "york"), ("bob2", "nyc"), ("ada1", "ada2"),
           ("may", "nyc"), ("moon", "song"), ("moon", "times")]  # fmt: skip


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
    "a name with capitals, and a word": ("And Apple sells no apple.", [("Apple", "firm"), ("apple", "apple")]),
    "capitals throughout": ("NEW YORK", [("NEW YORK", "nyc")]),
    "a name without its capital": ("the york road", []),
    "a function word": ("It may rain.", []),
    "no article of an alias": ("The Moon and the Moon", [("Moon", "moon"), ("Moon", "moon")]),
    "the article of a label": ("The Times, Times", [("The Times", "times"), ("Times", "times")]),
    "an article that tells names apart": ("The York is in York.", [("The York", "song"), ("York", "york")]),
    "a capital that any word has there": ("Apple pie. NYC", [("NYC", "nyc")]),
    "of two, the one with more edges": ("Then Bob came.", [("Bob", "bob1")]),
    "of two with as many, none": ("Then Ada came.", []),
}


@pytest.mark.parametrize("case", CASES)
def test_mentions(case: str, graph: Graph) -> None:
    text, expected = CASES[case]
    assert linked(graph, text) == expected


def test_text_without_capitals_links_all_forms(graph: Graph) -> None:
    assert linked(graph, "new york and york", cased=False) == [("new york", "nyc"), ("york", "york")]
    assert linked(graph, "apple", cased=False) == [], "two entities with one edge each"


def test_linked_articles(tmp_path: Path) -> None:
    """The mentions that the graph knows, on articles in lower case: how many are found, and how many of the links that
    overlap one are right; of the links that overlap a mention of any entity, also of one that the graph lacks, how
    many are right. Other links have no truth here: articles link a page once, and the dictionary every time.
    """
    folder = DATA / "fb15k237"
    if not (DATA / "entity_linked_wiki").is_dir() or not folder.is_dir():
        pytest.skip("needs entity_linked_wiki and fb15k237, which are not there")
    section = GraphSection(path=[str(folder / "train.tsv")], entities=folder / "entities.jsonl", holdout=1e-9)
    graph = prepare_graph(section, tmp_path)
    wikidata = [json.loads(line)["wikidata"] for line in (folder / "entities.jsonl").open()]
    linker, there, known, right, found, found_any = Linker(graph, cased=False), {*wikidata}, 0, 0, 0, 0
    with (DATA / "entity_linked_wiki/articles.jsonl").open() as articles:
        for sentence in (sentence for article in articles for sentence in json.loads(article)["sentences"]):
            every = {(start, end): name for start, end, name in sentence["mentions"]}
            given = {span: name for span, name in every.items() if name in there}
            mentions = {(start, end): wikidata[entity] for start, end, entity in linker.link(sentence["text"].split())}
            known += len(given)
            right += sum(mentions.get(span) == name for span, name in given.items())
            found += sum(_overlaps(span, given) for span in mentions)
            found_any += sum(_overlaps(span, every) for span in mentions)
    print(
        f"{known} mentions: recall {right / known:.3f}, precision {right / found:.3f}, {right / found_any:.3f} of any"
    )
    assert right / known > 0.8
    assert right / found > 0.85


def _overlaps(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    return any(start < span[1] and span[0] < end for start, end in others)
