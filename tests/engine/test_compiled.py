"""Compiled layers compute the same, and are compiled once whatever the batches' sizes."""

from __future__ import annotations

import torch

from engine.compiled import compile_layers
from pretrain.model import ModelSection
from pretrain.objectives import mlm
from tests.engine.test_chunks import passed
from tests.pretrain.test_objectives import TINY, make


def test_losses_and_gradients_are_those_of_plain_layers() -> None:
    objective, source = make(mlm, ModelSection(**{**TINY.model_dump(by_alias=True), "num_hidden_layers": 1}))
    plan = source.plan(0, 0)
    batches = [source.collate(plan[:size]) for size in (3, 5, 8, 4)]
    names = list(objective.state_dict())
    plain = [passed(objective.train(), batch) for batch in batches]
    torch._dynamo.utils.counters.clear()
    compile_layers(objective)
    for turn, (batch, (terms, gradient)) in enumerate(zip(batches, plain, strict=True)):
        found, other = passed(objective, batch)
        torch.testing.assert_close(found, terms, rtol=1e-5, atol=1e-5)
        assert (other - gradient).norm() / gradient.norm() < 1e-5
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        if turn == 0:
            first = graphs
    assert 0 < first == graphs, "compiled again for another size"
    assert list(objective.state_dict()) == names
