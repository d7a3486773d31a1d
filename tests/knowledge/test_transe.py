"""TransE: corruptions, the loss, a run that learns, its export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from knowledge.__main__ import main
from knowledge.graph import Graph
from knowledge.prepare import GraphSection, prepare_graph
from knowledge.stage import load_config
from knowledge.transe import EmbeddingSection, TransEObjective, Triples

PEOPLE, TOWNS = 40, 4
NUMBER = PEOPLE + TOWNS


def write_towns(folder: Path) -> Path:
    """Who lives in a town also works, votes and sings there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "towns.tsv"
    relations = ("lives in", "works in", "votes in", "sings in")
    path.write_text("\n".join(f"p{i}\t{relation}\tt{i % TOWNS}" for i in range(PEOPLE) for relation in relations))
    return path


def made(folder: Path, **settings: Any) -> Graph:
    return prepare_graph(GraphSection(path=[str(write_towns(folder))], **settings), folder / "cache")


def test_corruptions_differ_in_one_end_and_are_not_true(tmp_path: Path) -> None:
    graph, section = made(tmp_path), EmbeddingSection(corruptions=8)
    source = Triples(graph, graph.triples, section, seed=1)
    rows = source.examples(0, 0)
    batch = source.collate(rows)
    triples, others = batch.input.ids.view(-1, 3), batch.targets["corrupted"]
    assert torch.equal(triples, torch.from_numpy(graph.triples.astype(np.int64)) + torch.tensor([1, 0, 1]))
    assert others.min() >= 1
    assert others.max() <= NUMBER
    replaced = torch.where(batch.targets["heads"], triples[:, 0], triples[:, 2])
    assert (others != replaced[:, None]).all()
    true = {tuple(row) for row in triples.tolist()}
    made_up = [
        (other, r, t) if head else (h, r, other)
        for (h, r, t), head, row in zip(triples.tolist(), batch.targets["heads"].tolist(), others.tolist(), strict=True)
        for other in row
    ]
    assert sum(each in true for each in made_up) / len(made_up) < 0.01


def test_corruptions_are_functions_of_seed_epoch_and_triple(tmp_path: Path) -> None:
    graph = made(tmp_path)
    source = Triples(graph, graph.triples, EmbeddingSection(), seed=1)
    rows = source.examples(2, 0)
    whole, part = source.collate(rows).targets["corrupted"], source.collate(rows[[30, 4, 5]]).targets["corrupted"]
    assert torch.equal(part, whole[[30, 4, 5]])
    assert not torch.equal(whole, source.collate(source.examples(3, 0)).targets["corrupted"])


def test_bernoulli_replaces_the_side_with_fewer_true_corruptions(tmp_path: Path) -> None:
    """One tail for forty heads: a replaced head is often true, a replaced tail seldom."""
    (tmp_path / "t.tsv").write_text("\n".join(f"p{i}\tborn in\tc" for i in range(40)) + "\nc\tis in\td")
    graph = prepare_graph(GraphSection(path=[str(tmp_path / "t.tsv")], holdout=1e-9), tmp_path / "cache")
    source = Triples(graph, graph.triples, EmbeddingSection(), seed=1)
    batch = source.collate(source.examples(0, 0))
    born = batch.input.ids.view(-1, 3)[:, 1] == graph.relations.index("born in")
    assert batch.targets["heads"][born].float().mean() < 0.15  # 1 / 41


@pytest.mark.parametrize("norm", [1, 2])
def test_the_loss_is_the_margin_of_plain_distances(norm: Any, tmp_path: Path) -> None:
    graph, section = made(tmp_path), EmbeddingSection(embedding_size=8, norm=norm, margin=1.5, corruptions=3)
    torch.manual_seed(0)
    objective = TransEObjective(graph, section)
    source = Triples(graph, graph.triples, section, seed=1)
    batch = source.collate(source.examples(0, 0))
    total = 0.0
    objective.requires_grad_(False)
    scaled = torch.nn.functional.normalize
    entities, relations = objective.model.entities.weight, objective.model.relations.weight
    distance = lambda h, r, t: torch.linalg.vector_norm(  # noqa: E731
        scaled(entities[h], dim=0) + scaled(relations[r], dim=0) - scaled(entities[t], dim=0), ord=norm
    )
    for (h, r, t), others, head in zip(
        batch.input.ids.view(-1, 3), batch.targets["corrupted"], batch.targets["heads"], strict=True
    ):
        gaps = [distance(h, r, t) - (distance(o, r, t) if head else distance(h, r, o)) + 1.5 for o in others]
        total += sum(max(0.0, gap.item()) for gap in gaps) / 3
    assert float(objective(batch)["margin"].total) == pytest.approx(total, rel=1e-5)


def trained(folder: Path) -> tuple[Graph, Path]:
    """The towns, and the export of a short run on them."""
    arguments = run_arguments(folder)
    assert main(arguments) == 0
    section = load_config([each for each in arguments if each.startswith("graph.")]).graph
    return prepare_graph(section, folder / "data"), folder / "runs/embed/towns/export"


def run_arguments(folder: Path) -> list[str]:
    return [
        f"graph.path=[{write_towns(folder)}]", "graph.holdout=0.1", "model.embedding_size=16", "model.margin=2",
        "train.phases=[{batch_size: 32}]", "optim.learning_rate=0.03", "train.steps=120", f"run.dir={folder}/runs",
        f"run.data_dir={folder}/data", "tracking.wandb=off", "run.name=towns", "run.threads=1", "run.precision=fp32",
    ]  # fmt: skip


def test_a_run_learns_the_towns_and_its_export_knows_the_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = run_arguments(tmp_path)
    assert main(arguments) == 0
    folder = tmp_path / "runs/embed/towns"
    found = json.loads((folder / "finished.json").read_text())["ranks"]["validation"]["filtered"]
    assert found["mrr"] > 0.6, "chance is .1"
    model: Any = AutoModel.from_pretrained(folder / "export")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "export")
    assert model.entities.weight.shape == (NUMBER + 1, 16)
    assert not model.entities.weight[0].any(), "row 0 is no entity"
    assert tokenizer("p7")["input_ids"] == [tokenizer.get_vocab()["p7"]]
    assert tokenizer("nobody")["input_ids"] == [0]
    assert main(arguments) == 0
    assert "is finished" in capsys.readouterr().out
