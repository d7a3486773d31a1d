"""Graphs: triples from every form of file, sorted arrays, bad input with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bertillery.config.section import InputError
from knowledge import prepare
from knowledge.graph import Graph
from knowledge.prepare import GraphSection, prepare_graph

ROWS = [("b", "likes", "a"), ("a", "likes", "b"), ("a", "knows", "c"), ("a", "likes", "b"), ("c", "likes", "c")]


def made(folder: Path, text: str, name: str = "t.tsv", **settings: object) -> Graph:
    (folder / name).write_text(text, encoding="utf-8")
    section = GraphSection.model_validate({"path": [str(folder / name)], "valid": [], "holdout": 1e-9, **settings})
    return prepare_graph(section, folder / "cache")


def named(graph: Graph, triples: np.ndarray) -> set[tuple[str, str, str]]:
    return {(graph.names[h], graph.relations[r], graph.names[t]) for h, r, t in triples.tolist()}


FORMS = {
    "t.tsv": "\n".join("\t".join(row) for row in ROWS),
    "t.csv": "\n".join(",".join(row) for row in ROWS),
    "t.jsonl": "\n".join(json.dumps(dict(zip(("head", "relation", "tail"), row, strict=True))) for row in ROWS),
    "cn.csv": "\n".join(f"/a/x\t/r/{r}\t/c/en/{h}/n\t/c/en/{t}\t{{}}" for h, r, t in ROWS)
    + "\n/a/x\t/r/likes\t/c/de/hund\t/c/en/a\t{}",
}


@pytest.mark.parametrize("form", ["t.tsv", "t.csv", "t.jsonl", "conceptnet.tsv"])
def test_every_form_of_file_gives_the_same_sorted_triples(form: str, tmp_path: Path) -> None:
    graph = made(tmp_path, FORMS.get(form, FORMS["cn.csv"]), form)
    assert named(graph, graph.triples) == {*ROWS}
    assert len(graph.triples) == 4, "a repeated triple counts once"
    assert graph.triples.tolist() == sorted(graph.triples.tolist())


def test_statements_between_entities_of_wikidatas_dump(tmp_path: Path) -> None:
    base, direct = "<http://www.wikidata.org/entity/", "<http://www.wikidata.org/prop/direct/"
    lines = [
        f"{base}Q1> {direct}P31> {base}Q2> .",
        f'{base}Q1> {direct}P18> "a.jpg" .',
        f"{base}Q2> {direct}P31> {base}Q3> .",
    ]
    graph = made(tmp_path, "\n".join(lines), "w.nt")
    assert named(graph, graph.triples) == {("Q1", "P31", "Q2"), ("Q2", "P31", "Q3")}


def test_order_of_columns(tmp_path: Path) -> None:
    graph = made(tmp_path, "\n".join(f"{r}\t{h}\t{t}" for h, r, t in ROWS), order="rht")
    assert named(graph, graph.triples) == {*ROWS}


def test_neighbours_are_edges_in_both_directions(tmp_path: Path) -> None:
    graph = made(tmp_path, FORMS["t.tsv"])
    a = [*graph.names].index("a")
    relations, others = graph.neighbours(a)
    found = {(int(r), graph.names[int(o)]) for r, o in zip(relations, others, strict=True)}
    likes, knows = map(graph.relations.index, ("likes", "knows"))
    assert found == {(likes, "b"), (knows, "c"), (likes + graph.num_relations, "b")}
    assert graph.degrees.sum() == 2 * len(graph.triples)


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_sorting_in_pieces_is_sorting_at_once(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against numpy, with far more triples than fit into a piece, many of them repeated."""
    monkeypatch.setattr(prepare, "_CHUNK", chunk)
    rows = np.random.default_rng(0).integers(0, [7, 3, 7], (300, 3))
    graph = made(tmp_path, "\n".join("\t".join(map(str, row)) for row in rows.tolist()))
    assert named(graph, graph.triples) == {tuple(map(str, row)) for row in rows.tolist()}
    assert (np.diff(graph.triples.astype(np.int64) @ [10_000, 100, 1]) > 0).all()
    for entity in range(graph.num_entities):
        relations, others = graph.neighbours(entity)
        out = graph.triples[graph.triples[:, 0] == entity][:, 1:].tolist()
        back = [[r + graph.num_relations, h] for h, r, t in graph.triples.tolist() if t == entity]
        assert np.stack([relations, others], 1).tolist() == sorted(out + back)


def test_the_same_files_give_the_same_graph(tmp_path: Path) -> None:
    first, second = (made(tmp_path / name, FORMS["t.tsv"]) for name in ("x", "y") if not (tmp_path / name).mkdir())
    assert first.fingerprint == second.fingerprint


def test_what_is_held_out_has_other_triples(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    text = "\n".join("\t".join(map(str, row)) for row in rng.integers(0, [40, 3, 40], (200, 3)).tolist())
    graph = made(tmp_path, text, holdout=0.2)
    assert 20 < len(graph.valid) <= 40
    assert not named(graph, graph.valid) & named(graph, graph.triples)
    assert (graph.degrees[graph.valid[:, [0, 2]]] > 0).all()


def test_labels_and_aliases(tmp_path: Path) -> None:
    lines = [{"id": 0, "label": "Ada"}, {"id": 1, "label": "Bob", "aliases": ["Robert"]}]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, lines)))
    graph = made(tmp_path, "0\tlikes\t1", entities=str(tmp_path / "e.jsonl"))
    assert [*graph.labels] == ["Ada", "Bob"]
    assert [*graph.aliases()] == [(1, ["Robert"])]


BAD = {
    "two columns": ("a\tlikes\tb\na\tb", "t.tsv", r"t\.tsv:2: 2 columns, and a triple has three"),
    "four columns": ("a\tlikes\tb\tc", "t.tsv", r"t\.tsv:1: 4 columns"),
    "an empty cell": ("a\t\tb", "t.tsv", r"t\.tsv:1: an empty cell"),
    "a missing key": ('{"head": "a", "tail": "b"}', "t.jsonl", r"t\.jsonl:1: a triple is an object with head"),
    "ConceptNet cut": ("/a/x\t/r/IsA\t/c/en/a", "t.tsv", r"t\.tsv:1: 3 columns, and a row of ConceptNet's"),
    "nothing": ("", "t.tsv", "no triple in"),
    "another type": ("a", "t.docx", "unsupported file type"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_message_with_file_and_line(case: str, tmp_path: Path) -> None:
    text, name, message = BAD[case]
    with pytest.raises(InputError, match=message):
        made(tmp_path, text, name)
    assert not [*(tmp_path / "cache").glob("graph-*[0-9a-f]")], "nothing half-written"


def test_entities_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"id": "a"}\n{"id": "a"}')
    with pytest.raises(InputError, match=r"e\.jsonl:2: a second entity 'a'"):
        made(tmp_path, "a\tlikes\ta", entities=str(tmp_path / "e.jsonl"))
    (tmp_path / "e.jsonl").write_text('{"id": "a"}')
    with pytest.raises(InputError, match=r"t\.tsv:1: the entity 'b' is not in .*e\.jsonl"):
        made(tmp_path, "a\tlikes\tb", entities=str(tmp_path / "e.jsonl"))


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    graph = made(tmp_path, FORMS["t.tsv"])
    with (graph.path / "edges.bin").open("ab") as stream:
        stream.write(b"0")
    with pytest.raises(InputError, match=r"edges\.bin is missing or has another size"):
        Graph.open(graph.path)
