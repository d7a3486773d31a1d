"""Which concepts texts name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from knowledge.graph import Graph
from knowledge.prepare import GraphSection, prepare_graph
from knowledge.questions.grounding import Grounding, base_forms

Write = Callable[[Sequence[tuple[str, str, str]]], Graph]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Makes a graph of triples."""

    def made(triples: Sequence[tuple[str, str, str]]) -> Graph:
        (tmp_path / "graph.tsv").write_text("".join("\t".join(each) + "\n" for each in triples))
        return prepare_graph(GraphSection(path=[str(tmp_path / "graph.tsv")]), tmp_path / "cache")

    return made


def named(graph: Graph, *texts: str) -> list[list[str]]:
    grounding = Grounding(graph, texts)
    return [[graph.names[concept] for concept in grounding.concepts(text)] for text in texts]


@pytest.mark.parametrize(
    ("word", "base"),
    [("doors", "door"), ("cities", "city"), ("boxes", "box"), ("houses", "house"), ("making", "make"),
     ("running", "run"), ("walked", "walk"), ("hoped", "hope"), ("tried", "try"), ("went", "go"), ("mice", "mouse")],
)  # fmt: skip
def test_base_forms(word: str, base: str) -> None:
    assert base in base_forms(word)


@pytest.mark.parametrize("word", ["glass", "bus", "this", "sing", "red", "is"])
def test_words_that_only_look_inflected(word: str) -> None:
    assert [*base_forms(word)] == []


def test_runs_of_words_are_found_as_they_stand_and_in_base_form(write: Write) -> None:
    graph = write([("revolving door", "IsA", "door"), ("play on ice", "UsedFor", "bank"), ("bake", "r", "hope")])
    assert named(graph, "Revolving doors of a bank", "He played on ice, hoping.", "baking hops") == [
        ["revolving door", "door", "bank"], ["play on ice", "hope"], ["bake"],
    ]  # fmt: skip


def test_stop_words_and_words_of_no_concept_are_none(write: Write) -> None:
    graph = write([("the", "r", "in"), ("the end", "r", "a")])
    assert named(graph, "In the end of a day", "unheard of", "") == [["the end"], [], []]


def test_longer_runs_than_four_words_are_not_looked_for(write: Write) -> None:
    graph = write([("a b c d", "r", "b c d e f")])
    assert named(graph, "a b c d e f") == [["a b c d"]]


def test_a_pattern_names_three_concepts_at_most_the_shortest(write: Write, tmp_path: Path) -> None:
    lines = [f'{{"id": "{"x" * number}", "label": "Door"}}' for number in range(5, 0, -1)]
    (tmp_path / "entities.jsonl").write_text("\n".join(lines))
    (tmp_path / "graph.tsv").write_text("x\tr\txx\n")
    section = GraphSection(path=[str(tmp_path / "graph.tsv")], entities=tmp_path / "entities.jsonl")
    assert named(prepare_graph(section, tmp_path / "cache"), "doors") == [["x", "xx", "xxx"]]
