"""Multiple choice beside a graph: what batches hold, what is trained, what leaves, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from bertillery.config.section import ConfigError, InputError, validate
from bertillery.models.export import export_model
from bertillery.models.families.transe import TransEConfig, TransEModel
from bertillery.models.load import load
from finetune.data.splits import Task, read_task
from finetune.predict import predict
from finetune.task import TaskSection, task_type_of
from finetune.task_types.base import Predicted
from finetune.task_types.graph_choice import STRONGEST, Type
from knowledge.stage import entity_tokenizer
from tests.finetune.texts import write_encoder

FACTS = """the king\truled\ttown
town\tis in\triver
queen\tbuilt\told stone
old stone\tis in\ttown
gold\tis in\tnew town
new town\tis in\triver
river\tcrossed\tqueen
"""
ROWS = [
    {"q": "who ruled the town", "a": "the king", "b": "gold", "c": "", "label": 0},
    {"q": "where is the old stone", "a": "queen", "b": "what", "c": "river", "label": 2},
    {"q": "what is it", "a": "gold", "b": "town", "c": "stone", "label": 1},
    {"q": "is the river in the new town", "a": "river", "b": "the king", "c": "queen", "label": 0},
]


def task_of(folder: Path, **changes: Any) -> tuple[Type, Task]:
    """The task type, and the task with the same rows for training and validation."""
    (folder / "graph.tsv").write_text(FACTS)
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    given: dict[str, Any] = {
        "name": "own", "type": "graph_choice", "text": "q", "choices": ["a", "b", "c"], "labels": [0, 1, 2],
        "metrics": "accuracy", "root": str(folder), "files": dict.fromkeys(("train", "validation"), "all.jsonl"),
        "graph": {"path": ["graph.tsv"], "holdout": 1e-9},
    }  # fmt: skip
    section = validate(TaskSection, given | changes)
    kind = task_type_of(section)
    assert isinstance(kind, Type)
    kind.data_dir = folder / "data"
    return kind, read_task(section, data_dir=folder, glue_dir=None)


def batch_of(kind: Type, task: Task, encoder: Path, index: list[int]) -> Any:
    examples = kind.examples(task.split("train"), AutoTokenizer.from_pretrained(encoder), max_length=40, seed=0)
    return examples.collate(examples.examples(0, 0)[index])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


def test_no_concept_of_a_choice_is_among_those_of_its_question(tmp_path: Path) -> None:
    kind, task = task_of(tmp_path)
    table, split = kind.table(task.split("train")), task.split("train")
    names, row = kind.graph.names, 0
    met: set[tuple[str, str]] = set()
    for choices in split.texts[1]:
        for text in filter(None, choices):
            found = table.take(np.array([row]))
            concepts = [names[concept] for concept in found.concepts]
            pairs = {(concepts[a], concepts[b]) for _, a, b in found.pairs.T}
            assert not {asked for asked, _ in pairs} & {chosen for _, chosen in pairs}
            assert all(chosen in text for _, chosen in pairs)
            met |= pairs
            row += 1
    assert ("town", "the king") in met
    assert ("river", "the king") in met
    assert not any(asked == chosen for asked, chosen in met)
    assert table.counts.ungrounded == 1
    assert "1 of 4 without any" in str(table.counts)


def test_every_link_is_there_in_both_directions(tmp_path: Path) -> None:
    kind, task = task_of(tmp_path)
    found = kind.table(task.split("train")).take(np.arange(5))
    edges = {(int(a), int(b)) for a, b in found.edges.T}
    assert len(edges) == found.edges.shape[1]
    assert edges == {(b, a) for a, b in edges}
    facts = {frozenset((h, t)) for h, _, t in kind.graph.triples.tolist()}
    concepts = found.concepts.tolist()
    assert {frozenset((concepts[a], concepts[b])) for a, b in edges} <= facts


def test_tables_are_made_once_and_mapped(tmp_path: Path) -> None:
    kind, task = task_of(tmp_path)
    first = kind.table(task.split("train"))
    (folder,) = (tmp_path / "data").glob("schema-*")
    again, _ = task_of(tmp_path)
    second = again.table(task.split("validation"))
    assert [*(tmp_path / "data").glob("schema-*")] == [folder]
    assert isinstance(second.concepts, np.memmap)
    assert first.counts == second.counts
    other, _ = task_of(tmp_path, kagnet={"longest_path": 1})
    other.table(task.split("train"))
    assert len([*(tmp_path / "data").glob("schema-*")]) == 2
    (folder / "edges.npy").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot be read .* delete this folder"):
        task_of(tmp_path)[0].table(task.split("train"))


def test_packed_training_is_the_forward_pass_of_the_export(tmp_path: Path, encoder: Path) -> None:
    """A batch of questions of different numbers of choices, and each question alone, padded, in the model read back."""
    kind, task = task_of(tmp_path)
    torch.manual_seed(0)
    model, _ = load(kind.model_class, encoder)
    objective = kind.objective(model)
    tokenizer, split = AutoTokenizer.from_pretrained(encoder), task.split("train")
    with torch.no_grad():
        packed = objective.logits(batch_of(kind, task, encoder, [2, 0, 1])).tolist()
    models = objective.auxiliary_models()
    folder = export_model(model, tokenizer, tmp_path / "export", card="", auxiliary_models=models, max_length=40)
    opened, read = AutoModelForMultipleChoice.from_pretrained(folder).eval(), []
    for number in (2, 0, 1):
        texts = [text for text in split.texts[1][number] if text]
        inputs = tokenizer([split.texts[0][number]] * len(texts), texts, padding=True, return_tensors="pt")
        graphs = batch_of(kind, task, encoder, [number]).input.beside
        with torch.no_grad():
            read += opened(**{name: each[None] for name, each in inputs.items()}, graphs=graphs).logits[0].tolist()
    assert read == pytest.approx(packed, rel=1e-4, abs=1e-5)
    assert max(packed) - min(packed) > 1e-3


@pytest.mark.parametrize("text", ["joint", "frozen"])
def test_a_frozen_encoder_has_no_gradient_and_no_dropout_and_the_head_has(
    text: str, tmp_path: Path, encoder: Path
) -> None:
    kind, task = task_of(tmp_path, kagnet={"text": text})
    model, _ = load(kind.model_class, encoder, hidden_dropout=0.5)
    objective = kind.objective(model).train()
    batch = batch_of(kind, task, encoder, [0, 1, 2, 3])
    first, again = objective.logits(batch), objective.logits(batch)
    assert torch.equal(first, again) == (text == "frozen")
    objective.terms(first, batch)["cross_entropy"].total.backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("encoder.") and (text == "frozen" or ".pooler." in name)
        assert parameter.requires_grad != frozen
        assert (parameter.grad is None) == frozen, name


def test_predictions_name_the_strongest_paths(tmp_path: Path, encoder: Path) -> None:
    kind, task = task_of(tmp_path)
    model, _ = load(kind.model_class, encoder)
    split, tokenizer = task.split("validation"), AutoTokenizer.from_pretrained(encoder)
    examples = kind.examples(split, tokenizer, max_length=40, seed=0)
    rows = examples.examples(0, 0)
    outputs, _ = predict(Accelerator(cpu=True), kind.objective(model), examples, rows, micro_batch_tokens=60)
    table = kind.table(split)
    assert outputs.shape == (len(table.sizes), 1 + 2 * STRONGEST)
    for row, (paths, values) in enumerate(zip(table.sizes[:, 3], outputs, strict=True)):
        numbers, shares = values[1::2], values[2::2]
        shown = min(int(paths), STRONGEST)
        assert (numbers[:shown] >= 0).all()
        assert len({*numbers[:shown]}) == shown
        assert (numbers[shown:] == -1).all()
        assert (np.diff(shares) <= 0).all()
        assert shares.sum() == pytest.approx(1.0) or paths > STRONGEST or paths == 0
        for number in numbers[:shown].astype(int):
            assert kind.format_path(table, row, number)
    predicted = Predicted(split, outputs, kind.decide(outputs, examples, rows["index"]))
    (tmp_path / "pictures").mkdir()
    assert [file.name for file in kind.draw(predicted, tmp_path / "pictures")] == ["confusion.png", "paths.png"]
    right = Predicted(split, outputs, split.labels)  # pyright: ignore[reportArgumentType]
    shown = kind.explained(right)
    assert shown is not None
    assert any("—" in path for paths in shown[1].values() for path, _ in paths)
    names, numbers = kind.columns(predicted)
    assert names == ["p(0)", "p(1)", "p(2)"]
    np.testing.assert_allclose(numbers.sum(1), 1, rtol=1e-5)


def test_a_path_in_words_says_which_way_its_facts_go(tmp_path: Path) -> None:
    kind, task = task_of(tmp_path)
    table, found = kind.table(task.split("train")), set()
    for row in range(len(table.sizes)):
        found |= {kind.format_path(table, row, number) for number in range(table.sizes[row, 3])}
    assert "town ←ruled— the king" in found
    assert "old stone —is in→ town —is in→ river" in found


def write_vectors(folder: Path, kind: Type, entities: int | None = None) -> Path:
    """Vectors that TransE might have left."""
    number = kind.graph.num_entities if entities is None else entities
    config = TransEConfig(vocab_size=number + 1, num_relations=kind.graph.num_relations, embedding_size=6)
    TransEModel(config).save_pretrained(folder)
    entity_tokenizer(kind.graph).save_pretrained(folder)
    return folder


def test_embeddings_of_the_graph_are_the_models_tables(tmp_path: Path, encoder: Path) -> None:
    folder = write_vectors(tmp_path / "transe", task_of(tmp_path)[0])
    kind, task = task_of(tmp_path, kagnet={"embeddings": str(folder), "least_score": 0.3})
    model: Any = load(kind.model_class, encoder)[0]
    vectors = TransEModel.from_pretrained(folder)
    torch.testing.assert_close(model.graph.concepts, vectors.entity_vectors()[1:].detach())
    number = kind.graph.num_relations
    torch.testing.assert_close(model.graph.relations[number : 2 * number], -model.graph.relations[:number])
    assert kind.table(task.split("train")).counts.pruned > 0
    assert kind.inputs().keys() == {"graph files", "graph embeddings"}


def test_embeddings_of_another_graph_are_refused(tmp_path: Path) -> None:
    folder = write_vectors(tmp_path / "transe", task_of(tmp_path)[0])
    kind, _ = task_of(tmp_path, kagnet={"embeddings": str(folder)})
    (tmp_path / "graph.tsv").write_text(FACTS.replace("gold", "silver"))
    with pytest.raises(ConfigError, match=r"vectors of another graph.*'silver' is not where it is.*make embed"):
        kind.vectors  # noqa: B018
    kind, _ = task_of(tmp_path, kagnet={"embeddings": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="none: no vectors of a graph can be read there"):
        kind.vectors  # noqa: B018


def test_vectors_that_are_no_transes_are_refused(tmp_path: Path, encoder: Path) -> None:
    kind, _ = task_of(tmp_path, kagnet={"embeddings": str(encoder)})
    with pytest.raises(ConfigError, match="a model of type 'bert', and no vectors of a graph"):
        kind.vectors  # noqa: B018
