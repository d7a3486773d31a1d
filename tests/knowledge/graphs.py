"""Small graphs of the tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from knowledge.graph import Graph
from knowledge.prepare import GraphSection, prepare_graph


def write_graph(folder: Path, facts: Iterable[tuple[str, str, str]]) -> Graph:
    """A graph of these triples, none of them held out."""
    file = folder / "graph.tsv"
    file.write_text("".join("\t".join(fact) + "\n" for fact in facts))
    return prepare_graph(GraphSection(path=[str(file)], holdout=1e-9), folder / "cache")
