"""The reader of schema graphs: sizes of the released code, and what its outputs may not depend on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from bertillery.models.export import export_model
from bertillery.models.families.kagnet import KagnetConfig, KagnetForMultipleChoice, KagnetOver, SchemaGraphs
from bertillery.models.heads import draw_head, head_parameters
from tests.finetune.texts import wordpiece, write_encoder

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> KagnetForMultipleChoice:
    """A fresh head for 30 concepts and 3 relations over a tiny encoder."""
    rng = np.random.default_rng(0)
    opener = KagnetOver(rng.normal(size=(30, 8)), rng.normal(size=(3, 8)))
    model, _ = opener.from_pretrained(
        str(write_encoder(tmp_path_factory.mktemp("kagnet"))),
        config=BertConfig.from_pretrained(tmp_path_factory.getbasetemp() / "kagnet0"),
        output_loading_info=True,
    )
    torch.manual_seed(0)
    draw_head(model, head_parameters(model))
    return model


def graphs(*choices: list[list[int]]) -> SchemaGraphs:
    """Schema graphs whose paths are lists of concepts; nodes are concepts met, in their order."""
    concepts: list[int] = []
    edges: list[tuple[int, int]] = []
    pairs: dict[tuple[int, int, int], int] = {}
    owners, lengths, nodes, relations = [], [], [], []
    for number, paths in enumerate(choices):
        begin = len(concepts)
        met = list(dict.fromkeys(concept for path in paths for concept in path))
        concepts += met
        links = {(a, b) for path in paths for a, b in pairwise(path)}
        for a, b in sorted(links | {(b, a) for a, b in links}):
            edges.append((begin + met.index(a), begin + met.index(b)))
        for path in paths:
            places = [begin + met.index(concept) for concept in path]
            owners.append(pairs.setdefault((number, places[0], places[-1]), len(pairs)))
            lengths.append(len(path))
            nodes += places
            relations += [*(concept % 6 for concept in path[:-1]), 6]
    table = (torch.tensor(each, dtype=torch.int64).view(-1, width).T for each, width in ((edges, 2), ([*pairs], 3)))
    flat = (torch.tensor(each, dtype=torch.int64) for each in (concepts, owners, lengths, nodes, relations))
    first, *others = flat
    return SchemaGraphs(first, *table, *others)


CHOICES = ([[1, 2, 3], [1, 3], [4, 5, 6, 3]], [[1, 2, 7], [4, 7]], [], [[4, 9, 10, 11, 12]])


def statements(number: int = len(CHOICES)) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(1))


def score(model: KagnetForMultipleChoice, texts: Tensor, given: SchemaGraphs | None) -> Tensor:
    with torch.no_grad():
        return model.score(texts, given).logits


def test_the_released_sizes_have_their_number_of_parameters() -> None:
    text = BertConfig(hidden_size=1024, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4, vocab_size=9)
    model = KagnetForMultipleChoice(KagnetConfig(text_config=text, num_concepts=5))
    parameters = dict(model.named_parameters())
    assert sum(parameters[name].numel() for name in head_parameters(model)) == 696_374
    assert model.graph.relations.shape == (35, 100)


def test_a_choice_without_paths_is_scored_from_its_text(model: KagnetForMultipleChoice) -> None:
    texts = statements()
    alone, read = score(model, texts, None), score(model, texts, graphs(*CHOICES))
    torch.testing.assert_close(read[2], alone[2], rtol=0, atol=0)
    assert (read - alone)[[0, 1, 3]].abs().min() > 1e-3
    torch.testing.assert_close(score(model, texts, graphs([], [], [], [])), alone, rtol=0, atol=0)


def test_permuting_choices_permutes_scores(model: KagnetForMultipleChoice) -> None:
    order, texts = [3, 0, 2, 1], statements()
    turned = score(model, texts[order], graphs(*(CHOICES[number] for number in order)))
    torch.testing.assert_close(turned, score(model, texts, graphs(*CHOICES))[order], rtol=1e-6, atol=1e-6)


def test_the_order_of_nodes_edges_pairs_and_paths_does_not_matter(model: KagnetForMultipleChoice) -> None:
    given, generator = graphs(*CHOICES), torch.Generator().manual_seed(2)
    nodes, pairs, edges = (
        torch.randperm(number, generator=generator)
        for number in (len(given.concepts), given.pairs.shape[1], given.edges.shape[1])
    )
    node, pair = nodes.argsort(), pairs.argsort()
    turned = SchemaGraphs(
        given.concepts[nodes],
        node[given.edges][:, edges],
        torch.stack([given.pairs[0], *node[given.pairs[1:]]])[:, pairs],
        pair[given.path_pairs],
        given.path_lengths,
        node[given.path_nodes],
        given.path_relations,
    )
    assert not torch.equal(turned.concepts, given.concepts)
    paths = (CHOICES[0][::-1], *CHOICES[1:])
    expected = score(model, statements(), given)
    for other in (turned, graphs(*paths)):
        torch.testing.assert_close(score(model, statements(), other), expected, rtol=1e-6, atol=1e-6)


def test_a_path_is_read_to_its_own_end(model: KagnetForMultipleChoice) -> None:
    """Neither longer paths beside it nor room for longer ones change its state; the LSTM's own is the reference."""
    given, reader = graphs(*CHOICES), model.graph
    nodes = reader.nodes(given)
    states, begin = reader.paths(nodes, given), 0
    for number, length in enumerate(given.path_lengths.tolist()):
        part = slice(begin, begin + length)
        steps = torch.cat([nodes[given.path_nodes[part]], reader.relations[given.path_relations[part]]], 1)
        torch.testing.assert_close(states[number], reader.recurrence(steps[None])[0][0, -1], rtol=1e-5, atol=1e-6)
        begin += length
    reader.longest += 7
    torch.testing.assert_close(reader.paths(nodes, given), states, rtol=1e-6, atol=1e-6)
    reader.longest -= 7


def test_attention_sums_to_one(model: KagnetForMultipleChoice) -> None:
    given = graphs(*CHOICES)
    read = model.score(statements(), given).read
    assert read is not None
    of_pairs = torch.zeros(given.pairs.shape[1]).index_add(0, given.path_pairs, read.path_attention)
    of_choices = torch.zeros(len(CHOICES)).index_add(0, given.pairs[0], read.pair_attention)
    torch.testing.assert_close(of_pairs, torch.ones_like(of_pairs))
    torch.testing.assert_close(of_choices, torch.tensor([1.0, 1.0, 0.0, 1.0]))


def test_a_node_is_the_sum_of_its_neighbours_and_not_of_itself(model: KagnetForMultipleChoice) -> None:
    given, reader = graphs([[1, 2, 3]]), model.graph
    one, two, three = (reader.concepts[number] for number in (1, 2, 3))
    first, second = reader.convolutions
    states = [torch.relu(first(each)) for each in (two, one + three, two)]
    expected = torch.stack([torch.relu(second(each)) for each in (states[1], states[0] + states[2], states[1])])
    torch.testing.assert_close(reader.nodes(given)[:, -25:], expected, rtol=1e-5, atol=1e-6)


def test_tables_are_the_embeddings_and_are_not_trained(model: KagnetForMultipleChoice) -> None:
    rng = np.random.default_rng(0)
    concepts, relations = (torch.from_numpy(rng.normal(size=(size, 8)).astype(np.float32)) for size in (30, 3))
    torch.testing.assert_close(model.graph.concepts, concepts)
    torch.testing.assert_close(model.graph.relations, torch.cat([relations, -relations, torch.zeros(1, 8)]))
    assert {name for name, _ in model.named_buffers()} >= {"graph.concepts", "graph.relations"}


def test_the_head_is_drawn_by_glorot(model: KagnetForMultipleChoice) -> None:
    parameters = dict(model.named_parameters())
    for parameter in (parameters[name] for name in head_parameters(model)):
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx((2 / sum(parameter.shape)) ** 0.5, rel=0.15)
        else:
            assert not parameter.any()


def test_everything_that_is_trained_has_a_gradient_also_without_paths(model: KagnetForMultipleChoice) -> None:
    """Processes wait for the gradient of every parameter."""
    ids = torch.randint(5, 40, (2, 2, 6), generator=torch.Generator().manual_seed(0))
    for given in (graphs(*CHOICES), graphs([], [], [], [])):
        model.zero_grad()
        loss: Any = model(ids, graphs=given, labels=torch.tensor([0, 1])).loss
        loss.backward()
        trained = {name for name, each in model.named_parameters() if each.requires_grad}
        assert trained - {name for name, each in model.named_parameters() if each.grad is not None} == set()
    assert not any(name.startswith("encoder.pooler.") for name in trained)


def test_the_export_opens_in_a_fresh_process(model: KagnetForMultipleChoice, tmp_path: Path) -> None:
    """With its graph head, and with the encoder as a stock model beside it."""
    tokenizer = wordpiece()
    export_model(
        model.eval(),
        tokenizer,
        tmp_path / "export",
        card="",
        auxiliary_models={"encoder": model.encoder},
        max_length=64,
    )
    given = graphs(*CHOICES)
    inputs = tokenizer(
        ["who built the town"] * 4, ["king", "a queen", "river", "stone"], padding=True, return_tensors="pt"
    )
    inputs = {name: each.view(2, 2, -1) for name, each in inputs.items()}
    with torch.no_grad():
        expected = model(**inputs, graphs=given).logits
    torch.save([inputs, {each.name: getattr(given, each.name) for each in fields(given)}], tmp_path / "inputs.pt")
    code = (
        "import sys, torch, bertillery\n"
        "from bertillery.models.families.kagnet import SchemaGraphs\n"
        "from transformers import AutoModel, AutoModelForMultipleChoice\n"
        "inputs, graphs = torch.load(sys.argv[2])\n"
        "model, report = AutoModelForMultipleChoice.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not any(report.values()), report\n"
        "print(type(AutoModel.from_pretrained(sys.argv[1] + '/encoder')).__name__)\n"
        "torch.save(model.eval()(**inputs, graphs=SchemaGraphs(**graphs)).logits, sys.argv[3])\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        *map(str, (tmp_path / "export", tmp_path / "inputs.pt", tmp_path / "out.pt")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [BertModel.__name__]
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, rtol=1e-6, atol=1e-6)
