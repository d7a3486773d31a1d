"""ERNIE's entities: what is shown of them, among which they are named, and the network's part in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertillery.config.section import ConfigError
from knowledge.links.linked import Knowledge, entity_table
from pretrain.config import load_config
from pretrain.model import ModelSection
from pretrain.objectives import bert, ernie
from tests.corpora import learnable_tokens, tiny_tokenizer
from tests.knowledge.mentions import mentions
from tests.knowledge.test_transe import trained

SIZES = ModelSection(
    num_hidden_layers=2, hidden_size=32, num_attention_heads=2, max_position_embeddings=64,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    return mentions(learnable_tokens(200))


def made(knowledge: Knowledge, **settings: Any) -> tuple[ernie.Ernie, ernie.LinkedSource]:
    torch.manual_seed(0)
    config, tokenizer = ernie.Config(entity_heads=3, **settings), tiny_tokenizer()
    source = ernie.source(config, knowledge.corpus.train, tokenizer, sequence_length=32, seed=1, knowledge=knowledge)
    return ernie.Ernie(config, SIZES, tokenizer, knowledge), source


def test_five_fifteen_eighty_percent_and_labels_that_stay_true(knowledge: Knowledge) -> None:
    """Within three standard deviations."""
    _, source = made(knowledge)
    rows = source.examples(0, 0)
    batch, true = source.collate(rows), source.aligned(rows, knowledge.train)
    shown = np.zeros_like(true)
    entities = batch.input.beside
    shown[entities.rows.numpy()] = entities.ids.numpy()
    places = np.flatnonzero(true)
    number = len(places)
    assert number == batch.counts["entities"] > 1000
    outcomes = {
        "another": ((shown != true) & (shown > 0))[places].sum(),
        "none": (shown[places] == 0).sum(),
        "itself": (shown == true)[places].sum(),
    }
    for name, share in (("another", 0.05), ("none", 0.15), ("itself", 0.8)):
        assert abs(outcomes[name] - share * number) < 3 * math.sqrt(share * (1 - share) * number), name
    candidates, labels = batch.targets["dea_candidates"].numpy(), batch.targets["dea_labels"].numpy()
    assert (candidates[np.arange(number), labels] == true[places]).all()
    assert np.array_equal(batch.targets["dea_positions"].numpy(), places)


def test_candidates_are_the_distinct_entities_of_the_example_and_none(knowledge: Knowledge) -> None:
    _, source = made(knowledge)
    rows = source.examples(0, 0)[:20]
    batch, true = source.collate(rows), source.aligned(rows, knowledge.train)
    bounds = batch.input.offsets.tolist()
    for place, candidates in zip(
        batch.targets["dea_positions"].tolist(), batch.targets["dea_candidates"].tolist(), strict=True
    ):
        example = next(i for i, end in enumerate(bounds[1:]) if place < end)
        found = sorted({*true[bounds[example] : bounds[example + 1]].tolist()} - {0})
        assert candidates == [0, *found] + [-1] * (len(candidates) - 1 - len(found))


def test_entities_are_functions_of_seed_epoch_example_and_position(knowledge: Knowledge) -> None:
    _, source = made(knowledge)
    rows = source.examples(0, 0)
    for number in (3, 17):
        alone, together = source.collate(rows[number : number + 1]), source.collate(rows[number - 2 : number + 3])
        begin, end = together.input.beside.lengths.cumsum()[1:3]
        assert torch.equal(alone.input.beside.ids, together.input.beside.ids[begin:end])


def test_text_and_masks_are_those_of_bert(knowledge: Knowledge) -> None:
    _, source = made(knowledge)
    plain = bert.source(bert.Config(), knowledge.corpus.train, tiny_tokenizer(), sequence_length=32, seed=1)
    ours, theirs = (each.collate(each.examples(0, 0)[:50]) for each in (source, plain))
    assert torch.equal(ours.input.ids, theirs.input.ids)
    for name, target in theirs.targets.items():
        assert torch.equal(ours.targets[name], target), name


def test_the_loss_at_the_start_is_about_that_of_a_uniform_guess(knowledge: Knowledge) -> None:
    objective, source = made(knowledge)
    objective.eval()
    batch = source.collate(source.examples(0, 0)[:200])
    terms = objective(batch)
    entropy = np.log((batch.targets["dea_candidates"].numpy() >= 0).sum(1)).mean()
    assert terms["dea"].total.item() / batch.counts["entities"] == pytest.approx(entropy, abs=0.5), (
        "logits are those of a vector of length sqrt(D) and vectors of length 1: of a deviation of 1"
    )
    assert objective.baselines([batch], np.ones(5000), {})["dea"] == pytest.approx(entropy)


def test_micro_batches_add_up_to_the_whole(knowledge: Knowledge) -> None:
    objective, source = made(knowledge)
    objective.eval()
    rows = source.examples(0, 0)[:60]
    whole = objective(source.collate(rows))
    parts = [objective(source.collate(rows[at : at + 7])) for at in range(0, 60, 7)]
    for name, term in whole.items():
        torch.testing.assert_close(sum(part[name].total for part in parts), term.total, rtol=1e-5, atol=1e-4)


def test_training_names_entities_and_leaves_the_table(knowledge: Knowledge) -> None:
    objective, source = made(knowledge)
    before = objective.model.bert.table.clone()
    batch = source.collate(source.examples(0, 0)[:16])
    optimizer = torch.optim.Adam([each for each in objective.parameters() if each.requires_grad], 3e-3)
    losses = []
    for _ in range(60):
        loss = sum(term.total / batch.counts[term.count] for term in objective(batch).values() if term.weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(objective(batch)["dea"].total.item() / batch.counts["entities"])
    assert losses[-1] < 0.4 * losses[0]
    assert torch.equal(objective.model.bert.table, before)
    assert all(parameter.grad is not None for parameter in objective.parameters() if parameter.requires_grad), (
        "every parameter that is trained gets a gradient: processes wait for all of them"
    )


@pytest.mark.parametrize("settings", [{"fuse": False}, {"dea": False}, {"fuse": False, "dea": False}], ids=str)
def test_ablations_train_what_is_left(settings: dict[str, bool], knowledge: Knowledge) -> None:
    objective, source = made(knowledge, **settings)
    batch = source.collate(source.examples(0, 0)[:16])
    terms = objective(batch)
    assert ("dea" in terms) == settings.get("dea", True)
    sum(term.total for term in terms.values() if term.weight).backward()
    assert all(parameter.grad is not None for parameter in objective.parameters() if parameter.requires_grad)


def test_the_table_is_the_vectors_behind_a_row_of_zeros(tmp_path: Path, knowledge: Knowledge) -> None:
    graph, export = trained(tmp_path)
    table = entity_table(str(export), graph)
    assert table.shape == (graph.num_entities + 1, 16)
    assert not table[0].any()
    torch.testing.assert_close(table[1:].norm(dim=-1), torch.ones(graph.num_entities))
    with pytest.raises(ConfigError, match="vectors of another graph: 44 entities and 4 relations"):
        entity_table(str(export), knowledge.graph)


def test_configurations_name_the_objective() -> None:
    root = Path(__file__).resolve().parents[2] / "configs/pretrain"
    config = load_config([str(root / "ernie_docs.yaml")])
    assert config.objective.model_dump()["type"] == "ernie"
    assert [stage.folder for stage in ernie.before(config)] == ["embed"]
